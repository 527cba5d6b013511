"""The built layers.cpp, and when it may stand for torch operations."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Build", "built", "common_dtype", "unwatched"]

Build = Callable[[Path], ctypes.CDLL | None]
"""Returns the functions of a C++ file, or None where it cannot be built."""

SOURCE = Path(__file__).with_name("layers.cpp")
PLAIN = (Tensor, torch.nn.Parameter)
TYPING = threading.Lock()
"""Until its types are known, a function takes addresses of 32 bits."""


def built(build: Build) -> ctypes.CDLL | None:
    """Return the functions of layers.cpp with their types; None where it cannot be built."""
    functions = build(SOURCE)
    if functions is not None:
        with TYPING:
            _type(functions)
    return functions


def _type(functions: ctypes.CDLL) -> None:
    if functions.mamba2_float.argtypes is None:
        pointer, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
        functions.mamba2_bytes.restype = whole
        for suffix in ("float", "double"):
            names = ("rms_norm", "mamba2", "mamba2_back")
            norm, mamba2, back = (getattr(functions, f"{name}_{suffix}") for name in names)
            norm.restype, norm.argtypes = None, [pointer, pointer, pointer, whole, whole, real, whole]
            mamba2.restype, mamba2.argtypes = None, [pointer, pointer]
            back.restype, back.argtypes = None, [pointer, pointer, pointer]


def common_dtype(parameters: Iterable[Tensor | None]) -> torch.dtype | None:
    """Return the dtype of parameters that compiled code can read, or None.

    It reads tensors of one dtype, float32 or float64, that are `unwatched`.
    """
    given = [p for p in parameters if p is not None]
    dtypes = {p.dtype for p in given}
    if len(dtypes) != 1 or not unwatched(*given):
        return None
    (dtype,) = dtypes
    return dtype if dtype in (torch.float32, torch.float64) else None


def unwatched(*given: Tensor | None) -> bool:
    """Say whether tensors are plain, on the CPU, hold their own numbers, and nobody needs the operations on them.

    A view with the negative bit holds others, and a tensor of zeros that autograd made none. Those who need the
    operations are compilers, tracers, transforms, forward-mode derivatives and dispatch modes.
    """
    for t in given:
        if t is None:
            continue
        if type(t) not in PLAIN or not t.is_cpu or t.is_neg() or t._is_zerotensor():
            return False
    return (
        not torch.compiler.is_dynamo_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
    )
