"""A solved point tied to autograd by compiled functions: value the point, gradient by the adjoint's program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deqlm.compiled.adjoint import Derived
from deqlm.gradients.adjoint import System

__all__ = ["LOCAL", "Call", "tied"]


@dataclass(frozen=True, eq=False)
class Call:
    """The call that is being tied.

    Attributes:
        system: what backward solves.
        shape: of the point on rows, (B, N).
    """

    system: System
    shape: torch.Size


class _Local(threading.local):
    """What the caller of a program tells the function behind it, which torch's compiler calls with tensors alone."""

    call: Call | None = None


LOCAL = _Local()


def tied(derived: Derived) -> Callable[..., tuple[Tensor]]:
    """Return the function of the graph's inputs that ties the point among them."""

    def tie(*inputs: Any) -> tuple[Tensor]:
        assert LOCAL.call is not None
        return (_Tied.apply(LOCAL.call, derived, *inputs),)  # type: ignore[return-value]

    return tie


class _Product:
    """w -> J^T w on rows (B, N), from what one evaluation saved; `plus` brings the loop that is a program."""

    def __init__(self, derived: Derived, saved: list[Any], shape: torch.Size) -> None:
        self.derived, self.saved, self.shape = derived, saved, shape

    def __call__(self, w: Tensor) -> Tensor:
        pulled = self.derived.pull([*self.saved, w.reshape(self.shape)])[self.derived.point]
        return torch.zeros_like(w) if pulled is None else pulled.reshape(w.shape)

    def plus(self, g: Tensor) -> _Affine:
        return _Affine(self, g)


class _Affine:
    """w -> J^T w + g, whose fixed point is the adjoint."""

    def __init__(self, product: _Product, g: Tensor) -> None:
        self.product, self.g = product, g

    def __call__(self, w: Tensor) -> Tensor:
        return self.product(w) + self.g

    def program(self, w: Tensor, drive: Tensor) -> Tensor:
        """Return the last point of a solve from ``w`` (B, N); see `deqlm_solvers.loop.program`."""
        product = self.product
        given = [drive, self.g.reshape(product.shape).contiguous(), w.reshape(product.shape), *product.saved]
        return product.derived.loop(given)[0].reshape(w.shape)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, derived: Derived, *inputs: Any) -> Tensor:
        _, *saved = derived.evaluate(list(inputs))
        ctx.call, ctx.derived = call, derived
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in saved]
        ctx.save_for_backward(*(value for value in saved if isinstance(value, Tensor)))
        return inputs[derived.point].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (g,) = grads
        tensors = iter(ctx.saved_tensors)
        saved = [next(tensors) if number is None else number for number in ctx.numbers]
        product = _Product(ctx.derived, saved, g.shape)
        w = replace(ctx.call.system, product=product, grid=None).invert(g.reshape(ctx.call.shape).contiguous())
        pulled = list(ctx.derived.pull([*saved, w.reshape(g.shape).contiguous()]))
        pulled[ctx.derived.point] = None
        return None, None, *pulled
