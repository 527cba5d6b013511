"""The built layers.cpp, and when it may stand for torch operations."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Build", "built", "common_dtype", "unwatched"]

Build = Callable[[Path], ctypes.CDLL | None]
"""Returns the functions of a C++ file, or None where it cannot be built."""

SOURCE = Path(__file__).with_name("layers.cpp")


def built(build: Build) -> ctypes.CDLL | None:
    """Return the functions of layers.cpp with their types; None where it cannot be built."""
    functions = build(SOURCE)
    if functions is not None and functions.mamba2_float.argtypes is None:
        pointer, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
        functions.mamba2_bytes.restype = whole
        for suffix in ("float", "double"):
            names = ("rms_norm", "mamba2", "mamba2_back")
            norm, mamba2, back = (getattr(functions, f"{name}_{suffix}") for name in names)
            norm.restype, norm.argtypes = None, [pointer, pointer, pointer, whole, whole, real, whole]
            mamba2.restype, mamba2.argtypes = None, [pointer, pointer]
            back.restype, back.argtypes = None, [pointer, pointer, pointer]
    return functions


def common_dtype(parameters: Iterable[Tensor | None]) -> torch.dtype | None:
    """Return the dtype of parameters that compiled code can read, or None.

    It reads plain tensors of one dtype, float32 or float64, on the CPU; and is not traced by torch.compile.
    """
    given = [p for p in parameters if p is not None]
    dtypes = {p.dtype for p in given}
    if len(dtypes) != 1 or torch.compiler.is_compiling():
        return None
    plain = all(type(p) in (Tensor, torch.nn.Parameter) and p.device.type == "cpu" for p in given)
    (dtype,) = dtypes
    return dtype if plain and dtype in (torch.float32, torch.float64) else None


def unwatched(x: Tensor) -> bool:
    """Say whether no compiler, transform, forward-mode derivative or dispatch mode needs the operations on ``x``."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and forward_ad._current_level < 0
    )
