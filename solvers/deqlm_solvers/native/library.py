"""The built step.cpp, with the types of its functions."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from deqlm_solvers.native.build import Library, Outcome, build

__all__ = ["Library", "Outcome", "load"]

SOURCE = Path(__file__).with_name("step.cpp")


@functools.cache
def load(extra: tuple[str, ...] = ()) -> Outcome:
    """Return the kernel of this machine, built now where it is not in the cache; the answer is kept for the process.

    Args:
        extra: further flags of the compiler, such as those of a sanitizer.
    """
    outcome = build(SOURCE, extra)
    if outcome.library is not None:
        _declare(outcome.library.functions)
    return outcome


def _declare(functions: ctypes.CDLL) -> None:
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    functions.struct_bytes.restype = whole
    for suffix in ("float", "double"):
        sized, opened, advance, finish, lost, settle, review = (
            getattr(functions, f"{name}_{suffix}")
            for name in ("workspace_bytes", "open", "advance", "finish", "lost", "settle", "review")
        )
        sized.restype, sized.argtypes = whole, [pointer]
        opened.restype, opened.argtypes = None, [pointer, pointer]
        advance.restype, advance.argtypes = whole, [pointer, pointer, pointer, pointer, whole, whole, pointer]
        finish.restype, finish.argtypes = whole, [pointer] * 8
        lost.restype, lost.argtypes = whole, [pointer] * 5
        settle.restype, settle.argtypes = None, [pointer]
        review.restype, review.argtypes = whole, [pointer, pointer, pointer, whole, whole]
    functions.any_passed.restype, functions.any_passed.argtypes = whole, [pointer]
    functions.indices_of_active.restype, functions.indices_of_active.argtypes = None, [pointer, pointer]
