"""Gradient checkpointing by torchdeq's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

__all__ = ["mem_gc"]


def mem_gc(func: Callable[..., Any], in_args: tuple[Any, ...] | None = None) -> Any:
    """Evaluate ``func`` and keep nothing of it but its inputs: backward evaluates it again, with the same noise.

    It is ``torch.utils.checkpoint.checkpoint`` without reentry: parameters, closures and nested checkpoints get their
    gradients, which torchdeq gives to the parameters of a module alone.

    Args:
        func: module or function.
        in_args: its arguments.

    Examples:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> mem_gc(torch.exp, (x,)).sum().backward()
        >>> torch.equal(x.grad, x.exp())
        True
    """
    return checkpoint(func, *(in_args or ()), use_reentrant=False)
