"""What methods have in common that make the cotangent from products on the graph of one evaluation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqlm.gradients.base import Gradient
from deqlm.gradients.pull_back import pull_back, push_through
from deqlm.gradients.refused import refusing
from deqlm.gradients.transformable import Inverse, Point, chord
from deqlm.wrap.graph import begin, depends, reaches_leaf
from deqlm.wrap.held import Held
from deqlm.wrap.left_behind import left_by
from deqlm.wrap.levels import bare, outside
from deqlm.wrap.rows import RowMap
from deqlm_solvers import Adjoint, Map, Stop
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.kinds import refuse_transforms

__all__ = ["Linearised", "OneGraph"]


@dataclass(eq=False)
class Linearised:
    """f at the solved point, as what its graph says of J^T.

    Attributes:
        fz: f at the point, (B, N), with its graph.
        source: the point, where that graph starts.
        held: unknowns that are constants of the map, or None.
    """

    fz: Tensor
    source: Tensor
    held: Held | None

    def product(self, w: Tensor) -> Tensor:
        """Return J^T w, (B, N), in the dtype of ``w``; computed in that of the state. Held unknowns have none."""
        jtw = pull_back(self.fz, self.source, w.to(self.fz.dtype)) if self.fz.requires_grad else None
        return self._free(torch.zeros_like(w) if jtw is None else jtw.to(w.dtype))

    def forward_product(self) -> Map:
        """Return v -> J v, likewise."""
        if not self.fz.requires_grad:
            return torch.zeros_like
        product = push_through(self.fz, self.source)
        return lambda v: self._free(product(v.to(self.fz.dtype)).to(v.dtype))

    def _free(self, product: Tensor) -> Tensor:
        return product if self.held is None else torch.where(self.held.masked, 0.0, product)


class OneGraph(Gradient):
    """A method that returns the solved point and estimates w of (I - J^T) w = g in backward.

    Gradients reach parameters, inputs and captured tensors through the graph of one evaluation, with the memory of
    that; f is not called again in backward.
    """

    @abstractmethod
    def cotangent(self, f: Map, system: Linearised, adjoint: Adjoint) -> Map:
        """Return g -> w, (B, N) in the inner dtype (at least float32), called once per backward.

        Args:
            f: the map on rows; a `RowMap` says in ``solved_by`` how the point was found.
            system: J^T at the point.
            adjoint: report to fill in.
        """

    def graphs(self, stop: Stop) -> int:
        return 1

    def tangent(self, system: Linearised) -> Map:
        """Return v -> what stands for (I - J)^-1 v, the transpose of `cotangent`'s, (B, N) in the inner dtype.

        Raises:
            RuntimeError: the method has no forward mode.
        """
        raise RuntimeError(f"gradient {self.name!r} has no forward mode: use gradient='implicit', or torch.func.vjp")

    def transform(self, at: Point) -> Tensor:
        given = at.f.given(at.z)
        fz = at.f.f(given)
        orders = at.f.levels.orders
        outer = int(orders == 0 and bare(fz).requires_grad)
        why = f"gradient {self.name!r} has no second derivative; use Implicit(second_order=True)"
        if orders + outer == 0:
            return given
        if orders > 1:
            raise RuntimeError(why)
        with outside(), torch.enable_grad():
            source = begin(at.z)
            system = Linearised(at.f(source), source, at.f.held)
        at.f.f.solved_by = at.by
        return chord(at, _Estimated(self, at, system), fz, steps=1, outer=outer, why=why)

    def connect(self, f: Map, z: Tensor, adjoint: Adjoint) -> Tensor:
        source = begin(z)
        fz = f(source)
        if not reaches_leaf(fz, beyond=source):
            return z
        system = Linearised(fz, source, f.held if isinstance(f, RowMap) else None)
        y = _Tied.apply(fz, z, _within(system, self.cotangent(f, system, adjoint)), self.name)
        if isinstance(f, RowMap) and any(depends(t, source) for t in left_by(f.owner)):
            f(y)  # what it leaves is tied to y now, and not to a source where gradients end
        return y  # type: ignore[no-any-return]


class _Estimated(Inverse):
    """The inverses as a method estimates them, one right-hand side after another."""

    def __init__(self, method: OneGraph, at: Point, system: Linearised) -> None:
        self.method, self.at, self.system = method, at, system

    def __call__(self, g: Tensor, *, plain: bool, correction: bool) -> Tensor:
        if plain:
            estimate = self.method.tangent(self.system)
        else:
            estimate = self.method.cotangent(self.at.f.f, self.system, self.at.adjoint)
        w_of = _within(self.system, estimate)
        return torch.stack([w_of(each) for each in g])


def _within(system: Linearised, estimate: Map) -> Map:
    """Return ``estimate`` on cotangents of any dtype; held unknowns are constants, whose cotangents pass as they are.

    A row whose g is not finite stays so, and spoils no other.
    """

    def w_of(g: Tensor) -> Tensor:
        masked = None if system.held is None else system.held.masked
        rhs = g if masked is None else torch.where(masked, 0.0, g)
        lost = ~rhs.isfinite().all(1, keepdim=True)
        w = estimate(torch.where(lost, 0.0, rhs).to(inner_dtype(g.dtype))).to(g.dtype)
        w = w.masked_fill(lost, torch.nan)
        return w if masked is None else torch.where(masked, g, w)

    return w_of


class _Tied(torch.autograd.Function):
    """The solved point, whose cotangent g goes on to f(z) as w."""

    @staticmethod
    def forward(ctx: Any, fz: Tensor, z: Tensor, w_of: Callable[[Tensor], Tensor], name: str) -> Tensor:
        ctx.w_of, ctx.fz, ctx.name = w_of, fz, name
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (g,) = grads
        refuse_transforms(g)
        with torch.no_grad():
            w = ctx.w_of(g)
        why = f"gradient {ctx.name!r} has no second derivative; use Implicit(second_order=True)"
        return refusing(w, why, ctx.fz, g), None, None, None
