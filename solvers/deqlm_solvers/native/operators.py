"""The built ops.cpp: the compiled step as an operator of torch."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import torch
from torch import Tensor

from deqlm_solvers.native.build import Outcome, build

__all__ = ["load_operators"]

SOURCE = Path(__file__).with_name("ops.cpp")


@functools.cache
def load_operators() -> Outcome:
    """Return the library that registers ``torch.ops.deqlm``, built now where it is not in the cache.

    The operators are registered in C++, so a program that calls them calls no Python.
    """
    outcome = build(SOURCE, _link_flags())
    if outcome.library is not None:
        outcome.library.functions.drive_bytes.restype = ctypes.c_int64
        outcome.library.functions.recipe_bytes.restype = ctypes.c_int64
        torch.library.register_fake("deqlm::advance", _advance_shapes)
        torch.library.register_fake("deqlm::open", _open_shapes)
        torch.library.register_fake("deqlm::finish", _finish_shapes)
    return outcome


def _link_flags() -> tuple[str, ...]:
    """Return how to find torch's C interface: it is in a library that Python loads for itself."""
    folder = str(Path(torch.__file__).parent / "lib")
    if sys.platform == "darwin":
        return ("-undefined", "dynamic_lookup")
    return ("-Wl,--no-as-needed", f"-L{folder}", "-ltorch_cpu", f"-Wl,-rpath,{folder}")


def _advance_shapes(drive: Tensor, z: Tensor, fz: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z, memory_format=torch.contiguous_format), drive.new_empty(())


def _open_shapes(z: Tensor, recipe: Tensor) -> Tensor:
    return recipe.new_empty(7)


def _finish_shapes(drive: Tensor, last: Tensor, start: Tensor) -> tuple[Tensor, ...]:
    rows = last.shape[0]
    z = torch.empty_like(last, memory_format=torch.contiguous_format)
    real = last.new_empty(rows, dtype=torch.float64)
    return z, real, torch.empty_like(real), drive.new_empty(rows), drive.new_empty(rows, dtype=torch.int8)
