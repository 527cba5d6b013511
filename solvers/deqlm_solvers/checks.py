"""Messages for bad input: every one names the argument, the value and the rule."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = ["require", "suggest"]


def require(ok: bool, name: str, value: Any, rule: str) -> None:
    """Raise ``ValueError("<name> must be <rule>, got <value>")`` unless ``ok``.

    Example:
        >>> require(2 > 1, "memory", 2, ">= 1")
    """
    if not ok:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest known name, then all of them.

    Example:
        >>> suggest("memry", ["memory", "damping"])
        "did you mean 'memory'? known: damping, memory"
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(names) or '(none)'}"
