"""Norms of rows that are right at every magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["NORMS", "max_norms", "rms_norms", "row_norms"]


def row_norms(t: Tensor) -> Tensor:
    """Return the l2 norms along the last dimension, float64, right at every magnitude of ``t``.

    Examples:
        >>> size = 2.0**700
        >>> row_norms(torch.tensor([[3 * size, 4 * size]], dtype=torch.float64)).item() / size
        5.0
    """
    if t.dtype != torch.float64 or t.shape[-1] == 0:
        return torch.linalg.vector_norm(t, dim=-1, dtype=torch.float64)
    # by a power of two, which changes no bit of a norm that was right without
    top = torch.linalg.vector_norm(t, ord=torch.inf, dim=-1)
    exponent = torch.where(top.isfinite(), torch.frexp(top).exponent, 0).clamp(-1000, 1000).double()
    return torch.ldexp(torch.linalg.vector_norm(torch.ldexp(t, -exponent[..., None]), dim=-1), exponent)


def rms_norms(t: Tensor) -> Tensor:
    """Return the l2 norms along the last dimension over the root of its length, float64.

    Examples:
        >>> rms_norms(torch.tensor([[2.0, -2.0, 2.0, -2.0]])).item()
        2.0
    """
    return row_norms(t) / math.sqrt(max(1, t.shape[-1]))


def max_norms(t: Tensor) -> Tensor:
    """Return the largest absolute value along the last dimension, float64.

    Examples:
        >>> max_norms(torch.tensor([[2.0, -3.0]])).item()
        3.0
    """
    return t.abs().amax(-1).double() if t.shape[-1] else t.sum(-1).double()


NORMS: dict[str, Callable[[Tensor], Tensor]] = {"l2": row_norms, "rms": rms_norms, "max": max_norms}
"""The norms that `Stop` knows by name."""
