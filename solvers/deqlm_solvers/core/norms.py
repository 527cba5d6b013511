"""Norms of rows that are right at every magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deqlm_solvers.core.at_hand import at_hand
from deqlm_solvers.core.kinds import in_transform

__all__ = ["NORMS", "lengths", "max_norms", "rms_norms", "row_norms"]

LONG = 2**14
"""Numbers of a row from which on a float64 copy of it costs more than two stages."""
BLOCK = 256
"""Squares that are summed in float32, before their sums are in float64: the norm is right to about 1e-8."""
APART = 2**19
"""Numbers of a row from which on an accelerator sums each row by a call of its own, which makes no copy."""
TINY = 1e-12
"""Root mean square below which squares of float32 numbers may vanish."""


def row_norms(t: Tensor) -> Tensor:
    """Return the l2 norms along the last dimension, float64, right at every magnitude of ``t``.

    Examples:
        >>> size = 2.0**700
        >>> row_norms(torch.tensor([[3 * size, 4 * size]], dtype=torch.float64)).item() / size
        5.0
    """
    if t.dtype != torch.float64 or t.shape[-1] == 0:
        short = math.prod(t.shape[1:]) < LONG
        return torch.linalg.vector_norm(t, dim=-1, dtype=torch.float64) if short else lengths(t)
    # by a power of two, which changes no bit of a norm that was right without
    top = torch.linalg.vector_norm(t, ord=torch.inf, dim=-1)
    exponent = torch.where(top.isfinite(), torch.frexp(top).exponent, 0).clamp(-1000, 1000).double()
    return torch.ldexp(torch.linalg.vector_norm(torch.ldexp(t, -exponent[..., None]), dim=-1), exponent)


def lengths(t: Tensor) -> Tensor:
    """Return the l2 norms along the last dimension, summed in float64, without a float64 copy of a long ``t``.

    Where squares of float32 numbers neither overflow nor vanish: on a CPU blocks are summed in float32 and their sums
    in float64, and other rows by a copy of theirs; on an accelerator, where to ask would be to wait, kernels that sum
    in float64 as they read take very long rows. What a row gets depends on that row alone. Squares of a float64 state
    are not scaled; `row_norms` does.

    Args:
        t: (B, ..., N), floating point.

    Examples:
        >>> lengths(torch.tensor([[3.0, 4.0]])).item()
        5.0
    """
    if t.dtype == torch.float32 and t.dim() > 1 and math.prod(t.shape[1:]) >= LONG and _unseen(t):
        if at_hand(t):
            return _in_blocks(t)
        if t.device.type != "cpu" and t.dim() == 2 and t.shape[1] >= APART:
            return torch.stack(torch._foreach_norm(t.unbind(0), 2, dtype=torch.float64))  # type: ignore[arg-type]
    return torch.linalg.vector_norm(t, dim=-1, dtype=torch.float64)


def _unseen(t: Tensor) -> bool:
    """Say whether nobody follows the operations on ``t``, who would see a read by the host, or needs a derivative."""
    return (
        type(t) is Tensor
        and not t.requires_grad
        and not torch.compiler.is_dynamo_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not in_transform(t)
        and forward_ad._current_level < 0
    )


def _in_blocks(t: Tensor) -> Tensor:
    """Return the norms of float32 rows on a CPU, where the host may look at a number without waiting."""
    whole = t.shape[-1] // BLOCK * BLOCK
    squares = torch.linalg.vector_norm(t[..., whole:], dim=-1).double().square()
    if whole:
        blocks = t[..., :whole].unflatten(-1, (whole // BLOCK, BLOCK))
        squares += torch.linalg.vector_norm(blocks, dim=-1).double().square().sum(-1)
    norms = squares.sqrt_()
    wrong = ~((norms > TINY * math.sqrt(t.shape[-1])) & norms.isfinite())
    if bool(wrong.any().numpy()):
        rows = t[wrong]
        # a single one would be summed by parts, in another order than among others
        rows = torch.cat((rows, rows)) if len(rows) == 1 else rows
        norms[wrong] = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)[: int(wrong.numpy().sum())]
    return norms


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
