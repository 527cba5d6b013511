"""A bracket around the root of every unknown that stands for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, Map, register_solver
from deqlm_solvers.loop.step_solver import StepSolver

__all__ = ["Bracket"]


@register_solver("bracket")
@options
class Bracket(StepSolver):
    """Find z = f(z) between two points where f(z) - z has opposite signs: for scalar rows, and elementwise maps.

    Every unknown is taken as an equation of its own (``batch_dims`` that make each row one number, or an f that works
    element by element); where unknowns depend on each other it converges only if they settle one after the other, and
    the status tells. From the start it looks along f(z) - z and against it, at twice the distance each time, until the
    sign changes, which finds roots that attract and that repel alike, up to 1 / (64 eps) times the first residual away;
    then it bisects or interpolates. No derivative, no contraction and no good start is needed, and a root is always
    within the bracket: a continuous f with a change of sign in reach is solved. A sign that changes by a jump is no
    root, and ends MAX_ITER or STALLED at the jump. State (B, N), any floating dtype.

    Reference:
        T. R. Chandrupatla (1997), A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear
        function without using derivatives, Adv. Eng. Softw. 28.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Bracket, Solve, Stop
        >>> cubic = lambda z: z**3 - 2 * z - 5 + z  # a root at 2.0946, from where plain steps lead away
        >>> round(Solve(Bracket(), Stop(rtol=1e-6))(cubic, torch.zeros(1, 1)).z.item(), 4)
        2.0946
    """

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"lean"}
    steps_evaluate: ClassVar[bool] = False

    def init(self, z: Tensor) -> BracketState:
        blank = torch.zeros_like(z)
        start = Point(z, blank)
        return BracketState(start, [start, start], blank, start, start, start, torch.zeros_like(z, dtype=torch.bool))

    def final(self, state: BracketState) -> Tensor:
        return torch.full(state.found.shape[:1], state.looks < 0, dtype=torch.bool, device=state.found.device)

    def step(self, f: Map, at: Evaluation, state: BracketState) -> tuple[Tensor, BracketState]:
        here = Point(at.z, at.r)
        if state.looks < 0:
            state.start, state.near, state.stride = here, [here, here], at.r
            state.newest = state.other = state.older = here
        else:
            before = state.found
            self._look(here, state)
            self._narrow(here, before, state)
        state.looks += 1
        # further away a residual as large as the first one is lost in rounding, and any point looks like a root
        near = state.stride.abs() <= state.start.r.abs() / (64 * torch.finfo(at.z.dtype).eps)
        away = torch.where(near, state.stride if state.looks % 2 == 0 else -state.stride, 0.0)
        z = torch.where(state.found, self._within(state), state.start.z + away)
        if state.looks % 2:
            state.stride = 2 * state.stride
        return torch.where(z.isfinite(), z, state.newest.z), state

    def _look(self, here: Point, state: BracketState) -> None:
        """Make a bracket where the sign has changed since the last look on that side of the start."""
        side = state.looks % 2
        last = state.near[side]
        crossed = ~state.found & (here.r.sign() * last.r.sign() <= 0) & here.r.isfinite()
        state.newest = here.where(crossed, state.newest)
        state.other, state.older = last.where(crossed, state.other), last.where(crossed, state.older)
        state.near[side] = here.where(here.r.isfinite(), last)
        state.found = state.found | crossed

    def _narrow(self, here: Point, which: Tensor, state: BracketState) -> None:
        """Put the point into the brackets of unknowns ``which`` (B, N); one that is not finite is a new end too."""
        newest, other = state.newest, state.other
        which = which & (here.z != newest.z)
        here = Point(here.z, torch.where(here.r.isfinite(), here.r, newest.r))
        same = here.r.sign() * newest.r.sign() > 0
        state.older = newest.where(same, other).where(which, state.older)
        state.other = newest.where(which & ~same, other)
        state.newest = here.where(which, newest)

    def _within(self, state: BracketState) -> Tensor:
        """Return the next points in the brackets, (B, N): by interpolation where that is safe, else the middle."""
        (x1, f1), (x2, f2), (x3, f3) = state.newest, state.other, state.older
        width, xi, phi = x2 - x1, (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
        share = f1 / (f2 - f1) * (f3 / (f2 - f3)) + (x3 - x1) / width * (f1 / (f3 - f1)) * (f2 / (f3 - f2))
        safe = (phi.square() < xi) & ((1 - phi).square() < 1 - xi) & share.isfinite()
        least = (2 * torch.finfo(x1.dtype).eps * x1.abs() / width.abs()).clamp_max(0.5)
        share = torch.where(safe, torch.minimum(torch.maximum(share, least), 1 - least), 0.5)
        return torch.where(f1 == 0, x1, torch.where(f2 == 0, x2, x1 + share * width))


class Point(NamedTuple):
    """A point and its residual, (B, N) each."""

    z: Tensor
    r: Tensor

    def where(self, which: Tensor, other: Point) -> Point:
        """Return self at unknowns ``which`` (B, N), elsewhere ``other``."""
        return Point(torch.where(which, self.z, other.z), torch.where(which, self.r, other.r))


@dataclass
class BracketState:
    """State of a solve, (B, N) each.

    Attributes:
        start: the first point.
        near: the last points looked at along the first residual and against it, where the sign was that of the start.
        stride: way from the start to the next look.
        newest, other: the ends of the bracket.
        older: a point before, for interpolation.
        found: there is a bracket, bool.
        looks: steps so far; -1 before the first evaluation.
    """

    start: Point
    near: list[Point]
    stride: Tensor
    newest: Point
    other: Point
    older: Point
    found: Tensor
    looks: int = -1
