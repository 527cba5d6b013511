"""A solved point and its derivatives as functions that torch.func can transform, again and again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deqlm.gradients.refused import refusing
from deqlm.wrap.levels import Level, Levels, depth, outside
from deqlm.wrap.lifted import Lifted
from deqlm.wrap.solved_by import SolvedBy
from deqlm_solvers import Adjoint, Solution

__all__ = ["Inverse", "Point", "chord"]


@dataclass(eq=False)
class Point:
    """A point that was solved inside transforms.

    Attributes:
        f: the map on all rows; its attribute of the same name is that on the rows of one element, which the transforms
            see.
        z0: start, (B, N), as the transforms see it.
        z: solved point, (R, N), plain; of rows that failed badly, one that may be evaluated.
        sol: the flat solution.
        by: how it was solved.
        adjoint: report to fill in.
        differentiated: whether anybody may differentiate it.
    """

    f: Lifted
    z0: Tensor
    z: Tensor
    sol: Solution
    by: SolvedBy
    adjoint: Adjoint
    differentiated: bool


class Inverse(ABC):
    """(I - J^T)^-1 and (I - J)^-1 at a point, or what stands for them, on plain rows."""

    @abstractmethod
    def __call__(self, g: Tensor, *, plain: bool, correction: bool) -> Tensor:
        """Return the product with ``g``, (E, R, N) like it: E right-hand sides for the same R rows.

        Args:
            g: right-hand sides.
            plain: that with J, not with J^T.
            correction: it continues another one, whose outcome is the one to report.
        """


@dataclass(frozen=True, eq=False)
class _Tie:
    """What all derivatives of one point know.

    Attributes:
        inverse: see there.
        z: the point, (R, N).
        mapped: levels whose dimensions are rows of it.
        fz: f there without levels, with the graph that autograd outside of all transforms made, if any.
        why: text of the error for a derivative that is not there.
    """

    inverse: Inverse
    z: Tensor
    mapped: tuple[Level, ...]
    fz: Tensor
    why: str

    def filled(self, t: Tensor, hidden: frozenset[int]) -> Tensor:
        """Return ``t`` with a dimension at every level in ``hidden``, along which it may be constant."""
        levels = Levels()
        levels.mapped = tuple(level for level in self.mapped if level.number in hidden)
        with outside():
            zero = torch.zeros(levels.sizes, dtype=t.dtype, device=t.device)
        return t + levels.give(zero)

    def bounded(self, t: Tensor, left: int) -> Tensor:
        """Return ``t``, of which autograd outside of all transforms may take ``left`` derivatives more."""
        if left < 0:
            raise RuntimeError(self.why)
        return t if left else refusing(t, self.why, self.fz)


def chord(point: Point, inverse: Inverse, fz: Tensor, *, steps: int, outer: int, why: str) -> Tensor:
    """Return the point, (B, N) of its levels, with ``steps`` derivatives of every kind.

    Each step is y + (I - J)^-1 (f(y) - y) with J held fixed, whose value is the point. Its error is of second order in
    a change of the parameters, and each step adds an order.

    Args:
        point: see there.
        inverse: of I - J at the point.
        fz: f at the point, (B, N), as the transforms see it.
        steps: >= 1.
        outer: how many of the derivatives autograd outside of all transforms may take.
        why: text of the error for one more.
    """
    levels = point.f.levels
    with outside():
        tie = _Tie(inverse, point.z, levels.mapped, point.f.taken(fz), why)
    hidden = frozenset(level.number for level in levels.mapped)
    y: Tensor | None = None
    for step in range(steps):
        fy = fz if y is None else point.f.f(y)
        y = _Chord.apply(tie.filled(fy, hidden), y, tie, hidden, step + 1 == steps, outer)
    assert y is not None
    return y


class _Chord(torch.autograd.Function):
    """y + (I - J)^-1 (f(y) - y), of value z. ``hidden`` are levels of z whose dimensions the tensors do not show."""

    @staticmethod
    def forward(fy: Tensor, y: Tensor | None, tie: _Tie, hidden: frozenset[int], last: bool, outer: int) -> Tensor:
        return tie.z.reshape(fy.shape).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, y, ctx.tie, ctx.hidden, ctx.last, ctx.outer = inputs
        ctx.from_start, ctx.outermost = y is None, depth() == 0

    @staticmethod
    def vmap(info: Any, in_dims: Any, fy: Tensor, y: Tensor | None, tie: _Tie, hidden: Any, *more: Any) -> Any:
        fy = fy.movedim(in_dims[0], 0)
        if y is not None:
            y = y.movedim(in_dims[1], 0)
        return _Chord.apply(fy, y, tie, hidden - {depth() + 1}, *more), 0

    @staticmethod
    def jvp(ctx: Any, fy: Tensor, y: Tensor | None, *none: Any) -> Tensor:
        told = {"plain": True, "correction": not ctx.last, "left": ctx.outer}
        with forward_ad._set_fwd_grad_enabled(True):  # torch turns it off here, for outer levels too
            if ctx.from_start or y is None:
                return _linear(fy, ctx.tie, ctx.hidden, **told)
            return y + _linear(fy - y, ctx.tie, ctx.hidden, **told)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        left = ctx.outer - ctx.outermost
        w = _linear(g, ctx.tie, ctx.hidden, plain=False, correction=not ctx.last, left=left)
        if ctx.outermost:
            w = ctx.tie.bounded(w, left)
        return w, None if ctx.from_start else g - w, None, None, None, None


def _linear(
    g: Tensor, tie: _Tie, hidden: frozenset[int], *, plain: bool, correction: bool, left: int, copies: int = 0
) -> Tensor:
    filled = tie.filled(g, hidden) if hidden else g
    return _Linear.apply(filled, tie, hidden, copies, plain, correction, left)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    """g -> (I - J^T)^-1 g, or (I - J)^-1 g with ``plain``: linear in g, so its derivative is itself or the other one.

    The first ``copies`` dimensions of g are right-hand sides for the same rows.
    """

    @staticmethod
    def forward(g: Tensor, tie: _Tie, hidden: Any, copies: int, plain: bool, correction: bool, left: int) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(False):
            rows = g.reshape(g.shape[:copies].numel(), *tie.z.shape)
            return tie.inverse(rows, plain=plain, correction=correction).reshape(g.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.tie, ctx.hidden, ctx.copies, ctx.plain, _, ctx.left = inputs
        ctx.outermost = depth() == 0

    @staticmethod
    def vmap(info: Any, in_dims: Any, g: Tensor, tie: _Tie, hidden: Any, copies: int, *more: Any) -> Any:
        level = depth() + 1
        if level in hidden:
            # outer levels come before inner ones, behind the copies
            return _Linear.apply(g.movedim(in_dims[0], copies), tie, hidden - {level}, copies, *more), copies
        return _Linear.apply(g.movedim(in_dims[0], 0), tie, hidden, copies + 1, *more), 0

    @staticmethod
    def jvp(ctx: Any, g: Tensor, *none: Any) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(True):
            return _again(ctx, g, ctx.plain, ctx.left)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        left = ctx.left - ctx.outermost
        w = _again(ctx, g, not ctx.plain, left)
        return (ctx.tie.bounded(w, max(left, 0)) if ctx.outermost else w, *[None] * 6)


def _again(ctx: Any, g: Tensor, plain: bool, left: int) -> Tensor:
    return _linear(g, ctx.tie, ctx.hidden, plain=plain, correction=True, left=left, copies=ctx.copies)
