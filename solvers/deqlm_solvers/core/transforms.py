"""Solves inside function transforms and recordings are refused: their steps depend on values."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["in_transform", "refuse_tracing", "refuse_transforms"]

_PROXY = torch._C._TorchDispatchModeKey.PROXY  # type: ignore[attr-defined]


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
    return forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()  # type: ignore[attr-defined]


def refuse_tracing() -> None:
    """Raise where operations are recorded to be run again: the recording would hold the steps of this one input.

    Steps of a solve depend on values, and compiled steps are not seen by a recording, which would return memory that
    nobody wrote.

    Raises:
        RuntimeError: inside torch.jit.trace, torch.onnx.export, torch.export or make_fx; with what to do instead.

    Examples:
        >>> refuse_tracing()
    """
    if not torch.compiler.is_dynamo_compiling() and _records():
        raise RuntimeError(
            "a solve cannot be recorded by torch.jit.trace, torch.onnx.export, torch.export or make_fx, because its "
            "steps depend on values: the recording would repeat those of its example. Instead, record or compile the "
            "layer (DEQ(torch.compile(layer)), or an exported one) and solve around it, or save the weights with "
            "state_dict() and build the DEQ again where it runs"
        )


def _records() -> bool:
    """Say whether torch.jit.trace, or a mode of torch.fx at either of its two levels, records operations."""
    if torch._C._is_tracing() or torch._C._get_dispatch_mode(_PROXY) is not None:  # type: ignore[attr-defined]
        return True
    return torch._ops._get_dispatch_mode_pre_dispatch(_PROXY) is not None  # type: ignore[attr-defined]


def refuse_transforms(z: Tensor) -> None:
    """Raise where a solve cannot run: recorded, in a transform of torch.func, in forward mode or a vectorized backward.

    Args:
        z: start of the solve, of any shape.

    Raises:
        RuntimeError: with what to do instead.

    Examples:
        >>> refuse_transforms(torch.zeros(2, 3))
    """
    refuse_tracing()
    if in_transform(z):
        raise RuntimeError(
            "a solve cannot be transformed by torch.func (vmap, grad, jvp, jacrev, hessian), forward-mode "
            "differentiation or a vectorized backward, because its steps depend on values. Instead of vmap, give the "
            "batch to the solve as first dimensions (batch_dims); for derivatives, use torch.autograd.grad, or "
            "torch.autograd.functional.jacobian and hessian (with gradient=Implicit(second_order=True)), without "
            "vectorize"
        )
