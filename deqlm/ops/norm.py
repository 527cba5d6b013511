"""Gated root-mean-square normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from deqlm.ops.precision import wide

__all__ = ["gated_rms_norm"]


def gated_rms_norm(y: Tensor, gate: Tensor, weight: Tensor, *, groups: int, eps: float, gate_last: bool) -> Tensor:
    """Return RMSNorm(y SiLU(gate)) w, or RMSNorm(y) w SiLU(gate) with ``gate_last``, in the dtype of ``y``.

    The arithmetic is float32 or wider.

    Args:
        y: (..., width).
        gate: likewise.
        weight: (width,).
        groups: parts that are normalised each on its own; divides the width.
        eps: added to the mean square.
        gate_last: normalise ``y`` alone.
    """
    dtype = wide(y.dtype)
    gate = F.silu(gate.to(dtype))
    inner = y.to(dtype) if gate_last else y.to(dtype) * gate
    parts = inner.unflatten(-1, (groups, -1))
    normed = F.rms_norm(parts, parts.shape[-1:], eps=eps).flatten(-2) * weight.to(dtype)
    return (normed * gate if gate_last else normed).to(y.dtype)
