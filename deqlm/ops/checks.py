"""Messages for bad input; ops and layers know nothing of the solvers, so they have their own."""

from __future__ import annotations

from typing import Any

__all__ = ["require", "whole"]


def require(ok: bool, name: str, value: Any, rule: str) -> None:
    """Raise ``ValueError("<name> must be <rule>, got <value>")`` unless ``ok``.

    Examples:
        >>> require(64 % 16 == 0, "headdim", 16, "a divisor of 64")
    """
    if not ok:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def whole(name: str, value: Any, least: int) -> None:
    """Raise ``ValueError`` unless ``value`` is a whole number >= ``least``; booleans are none.

    Examples:
        >>> whole("n_head", 0, 1)
        Traceback (most recent call last):
        ValueError: n_head must be a whole number >= 1, got 0
    """
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(ok, name, value, f"a whole number >= {least}")
