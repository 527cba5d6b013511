"""RMSNorm in one compiled call."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from deqlm.ops.native.library import Build, built, common_dtype, unwatched

__all__ = ["Norm", "fuse_norm"]


class Norm:
    """x / sqrt(mean(x^2) + eps) times a weight, over the last dimension.

    Args:
        functions: of layers.cpp.
        weight: (D,), contiguous.
        eps: added to the mean square.
    """

    def __init__(self, functions: ctypes.CDLL, weight: Tensor, eps: float) -> None:
        self.weight, self.eps, self.dtype = weight, eps, weight.dtype
        self.width = weight.shape[0]
        self.run = functions.rms_norm_float if weight.dtype == torch.float32 else functions.rms_norm_double

    def takes(self, x: Tensor) -> bool:
        """Say whether ``x`` is a plain tensor (..., D) of the dtype that nobody watches."""
        return x.dtype == self.dtype and not torch.is_grad_enabled() and unwatched(x) and x.shape[-1:] == (self.width,)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the normalised ``x`` (..., D)."""
        x = x.contiguous()
        y = torch.empty_like(x)
        rows, threads = x.numel() // self.width, torch.get_num_threads()
        self.run(x.data_ptr(), self.weight.data_ptr(), y.data_ptr(), rows, self.width, self.eps, threads)
        return y


def fuse_norm(build: Build, weight: Tensor, eps: float | None) -> Norm | None:
    """Return the compiled twin of an RMSNorm over one dimension, or None where there is none.

    Args:
        build: compiles.
        weight: (D,).
        eps: None is that of the dtype, as for ``nn.RMSNorm``.
    """
    dtype = common_dtype([weight])
    functions = None if dtype is None or weight.dim() != 1 or not weight.numel() else built(build)
    if dtype is None or functions is None:
        return None
    return Norm(functions, weight.detach().contiguous(), torch.finfo(dtype).eps if eps is None else eps)
