"""Products with a Jacobian and its transpose on a graph that is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqlm.wrap.graph import keep_buffers

__all__ = ["pull_back", "pull_back_many", "push_through"]

GIVEN_AWAY = (
    "a part of the layer was compiled, with gradients, before this solve met it, so that its backward gives its "
    "buffers away and can run once, where the adjoint solve needs it many times. Set "
    "torch._functorch.config.donated_buffer = False before it is compiled, or let the solve be the first to "
    "evaluate it with gradients"
)

_engine: Any = getattr(torch.autograd.graph, "_engine_run_backward", None)


def pull_back(out: Tensor, source: Tensor, w: Tensor) -> Tensor | None:
    """Return the product of ``w`` with the transposed Jacobian of ``out`` with respect to ``source``, without a graph.

    `torch.autograd.grad` with the same arguments spends more on looking at them than a small f costs, and an adjoint
    solve asks dozens of times with tensors that are known to fit. So autograd's engine is called as that function calls
    it; where a version of torch has no such entry, the public function does it.

    Args:
        out: result of an evaluation, with its graph, which is kept.
        source: what it is differentiated by.
        w: cotangent, shape and dtype of ``out``.

    Returns:
        Shape of ``source``, or None where ``out`` does not depend on it.
    """
    try:
        return _product(out, source, w)
    except RuntimeError as error:
        if "donated" not in str(error):
            raise
        if not keep_buffers(out):
            raise RuntimeError(GIVEN_AWAY) from error
    return _product(out, source, w)


def _product(out: Tensor, source: Tensor, w: Tensor) -> Tensor | None:
    if _engine is None:
        return torch.autograd.grad(out, source, w, retain_graph=True, allow_unused=True)[0]
    keep_graph, create_graph = True, False
    return _engine((out,), (w,), keep_graph, create_graph, (source,), allow_unreachable=True, accumulate_grad=False)[0]


def push_through(out: Tensor, source: Tensor) -> Callable[[Tensor], Tensor]:
    """Return v -> J v with the Jacobian of ``out`` with respect to ``source``, by differentiating the transposed one.

    Args:
        out: result of an evaluation, with its graph, which is kept; every product is two reverse passes.
        source: what it is differentiated by.
    """
    with torch.enable_grad():
        w = torch.zeros_like(out, requires_grad=True)
        (pulled,) = torch.autograd.grad(out, source, w, create_graph=True, allow_unused=True)

    def product(v: Tensor) -> Tensor:
        if pulled is None or not pulled.requires_grad:
            return torch.zeros_like(v)
        (pushed,) = torch.autograd.grad(pulled, w, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if pushed is None else pushed

    return product


def pull_back_many(out: Tensor, source: Tensor, w: Tensor) -> Tensor:
    """Return the products of K cotangents with the transposed Jacobian, (K, *source.shape), without a graph.

    By one backward that carries all, or by one for each where an operation of f cannot be vectorised over them.

    Args:
        out: as for `pull_back`.
        source: likewise.
        w: (K, N), each for all rows of ``out`` (B, N).
    """
    wide = w[:, None].expand(-1, *out.shape)
    try:
        (found,) = torch.autograd.grad(out, source, wide, retain_graph=True, allow_unused=True, is_grads_batched=True)
    except Exception:  # whatever an operation of the user's makes of a batched cotangent
        parts = [pull_back(out, source, one.contiguous()) for one in wide]
        found = None if parts[0] is None else torch.stack([part for part in parts if part is not None])
    return torch.zeros_like(wide) if found is None else found
