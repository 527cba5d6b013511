"""Where an error comes from, in code that is neither ours nor a library's."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from functools import cache
from pathlib import Path

import torch

__all__ = ["blame"]


def blame(error: BaseException) -> str:
    """Return the innermost place of the user's own code that an error has passed, such as "mine.py:7, in make".

    Empty where it has passed none.

    Examples:
        >>> blame(ValueError("raised nowhere"))
        ''
    """
    if isinstance(error, SyntaxError) and error.filename and _own(error.filename):
        return f"{_short(error.filename)}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _own(frame.filename):
            return f"{_short(frame.filename)}:{frame.lineno}, in {frame.name}"
    return ""


def _own(filename: str) -> bool:
    path = Path(filename)
    return path.suffix == ".py" and not any(path.is_relative_to(root) for root in _libraries())


def _short(filename: str) -> str:
    path, here = Path(filename), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@cache
def _libraries() -> tuple[Path, ...]:
    """Return the folders of the standard library, of what is installed, and of this package."""
    known = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = [sys.modules[name].__file__ for name in ("deqlm", "deqlm_solvers") if name in sys.modules]
    roots = [Path(p) for p in known] + [Path(p).parent for p in [*ours, torch.__file__] if p]
    return tuple({*roots, *(root.resolve() for root in roots)})
