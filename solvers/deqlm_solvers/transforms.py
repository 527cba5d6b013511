"""Solves inside function transforms are refused, before torch stumbles over the first step that depends on values."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["in_transform", "refuse_transforms"]


def in_transform(z: Tensor) -> bool:
    """Say whether torch is in a transform of torch.func, in forward mode, or in a vectorized backward.

    Args:
        z: a tensor of the computation, of any shape.

    Examples:
        >>> in_transform(torch.zeros(2, 3))
        False
    """
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    if torch._C._are_functorch_transforms_active() or functorch.is_legacy_batchedtensor(z):
        return True
    # an open level of forward mode; whether f carries a tangent shows only when it is evaluated
    return forward_ad._current_level >= 0


def refuse_transforms(z: Tensor) -> None:
    """Raise where a solve cannot run: in a transform of torch.func, in forward mode, or in a vectorized backward.

    Args:
        z: start of the solve, of any shape.

    Raises:
        RuntimeError: with what to do instead.

    Examples:
        >>> refuse_transforms(torch.zeros(2, 3))
    """
    if in_transform(z):
        raise RuntimeError(
            "a solve cannot be transformed by torch.func (vmap, grad, jvp, jacrev, hessian), forward-mode "
            "differentiation or a vectorized backward, because its steps depend on values. Instead of vmap, give the "
            "batch to the solve as first dimensions (batch_dims); for derivatives, use torch.autograd.grad, or "
            "torch.autograd.functional.jacobian and hessian (with gradient=Implicit(second_order=True)), without "
            "vectorize"
        )
