"""Messages for bad input: every one names the argument, the value and the rule."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from deqlm_solvers.core.peer_names import HINTS

F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["LARGEST", "explain", "explain_options", "number", "require", "suggest", "whole"]

LARGEST = 2**31 - 1
"""Largest whole number of an option that memory is asked for by."""


def require(ok: bool, name: str, value: Any, rule: str) -> None:
    """Raise ``ValueError("<name> must be <rule>, got <value>")`` unless ``ok``.

    Examples:
        >>> require(2 > 1, "memory", 2, ">= 1")
    """
    if not ok:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def whole(name: str, value: Any, least: int, most: int | None = LARGEST) -> None:
    """Raise ``ValueError`` unless ``value`` is a whole number from ``least`` to ``most``; booleans are none.

    The bound is what an index can hold: a larger number would wrap where memory is asked for. Seeds and counts that
    nobody asks memory by have none, ``most=None``.

    Examples:
        >>> whole("memory", True, 1)
        Traceback (most recent call last):
        ValueError: memory must be a whole number >= 1, got True
        >>> whole("memory", 2**64 + 3, 1)
        Traceback (most recent call last):
        ValueError: memory must be a whole number >= 1 and <= 2147483647, got 18446744073709551619
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(is_whole, name, value, f"a whole number >= {least}")
    require(most is None or value <= most, name, value, f"a whole number >= {least} and <= {most}")


def number(name: str, value: Any, rule: str, ok: Callable[[float], bool]) -> None:
    """Raise ``ValueError`` unless ``value`` is a number (no boolean, text or tensor) for which ``ok`` holds.

    Examples:
        >>> number("damping", "half", "in (0, 1]", lambda d: 0 < d <= 1)
        Traceback (most recent call last):
        ValueError: damping must be a number in (0, 1], got 'half'
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # an int beyond what a double holds raises where it is used
    is_number = is_number and (isinstance(value, float) or abs(value) <= sys.float_info.max)
    require(is_number, name, value, f"a number {rule}")
    require(ok(value), name, value, rule)


def explain_options(hints: Mapping[str, str]) -> Callable[[F], F]:
    """Return a decorator: unknown keywords of a function raise ``TypeError`` with a hint or the nearest known name.

    Args:
        hints: keyword to the place where it belongs.
    """

    def wrap(function: F) -> F:
        parameters = inspect.signature(function).parameters
        known = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for key in kwargs:
                if key not in parameters:
                    raise TypeError(f"unknown option {key!r}: {hints.get(key) or suggest(key, known)}")
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return wrap


def explain(name: str, known: Iterable[str]) -> str:
    """Return what to tell of an unknown option of a class: a name that it is nearly, else where it belongs.

    Examples:
        >>> explain("dampng", ["memory", "damping"])
        "did you mean 'damping'? known: damping, memory"
        >>> explain("beta", ["memory", "damping"])
        'it is damping=, of the solver; known: damping, memory'
    """
    names = sorted(known)
    backward = name.startswith("b_")  # of another solve than that whose options these are
    if name in HINTS and (backward or not get_close_matches(name, names, n=1, cutoff=0.8)):
        return f"{HINTS[name]}; known: {', '.join(names) or '(none)'}"
    return suggest(name, names)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest known name, then all of them.

    Examples:
        >>> suggest("memry", ["memory", "damping"])
        "did you mean 'memory'? known: damping, memory"
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(names) or '(none)'}"
