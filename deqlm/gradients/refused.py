"""Derivatives that are not there: an error for whoever asks for them, in place of a wrong number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["refusing"]


def refusing(value: Tensor, why: str, *through: Tensor) -> Tensor:
    """Return ``value`` with an error for whoever differentiates it by ``through``; its own graph stays open.

    Args:
        value: (B, N).
        why: text of the error.
        *through: tensors with a graph, such as f(z), by which every path to a parameter leads through the error.
    """
    if not torch.is_grad_enabled():
        return value
    return value + _Refused.apply(why, torch.zeros_like(value), *through)  # type: ignore[operator]


class _Refused(torch.autograd.Function):
    """A tensor of zeros, with an error for whoever differentiates it by anything that it takes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(why: str, zeros: Tensor, *through: Tensor) -> Tensor:
        return zeros.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.why = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(ctx.why)
