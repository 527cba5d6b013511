"""Backpropagation through an iteration that is run backwards instead of stored."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from deqlm.gradients.base import nothing, register_gradient
from deqlm.gradients.through_steps import ThroughSteps
from deqlm.gradients.transformable import Point
from deqlm.wrap.rows import RowMap
from deqlm_solvers import Layout, Map, ReversibleIteration, Solution, Solve, Stop, options
from deqlm_solvers.core.checks import number, require
from deqlm_solvers.core.dtypes import evaluated_dtype
from deqlm_solvers.loop.loop import run

__all__ = ["Reversible"]


@register_gradient("reversible")
@options
class Reversible(ThroughSteps):
    """Differentiate every step of a `ReversibleIteration`, whose points are computed backwards from the last two.

    The gradient is that of the truncated iteration, start included, as that of `Unrolled`, at one more evaluation of f
    per step in backward and, for as long as rounding allows, at the memory of three states and one evaluation, however
    many steps there were. Going back multiplies the rounding of f by up to 1 / (1 - beta) per evaluation, so a pair of
    states is stored whenever eps (1 - beta)^-n would pass ``grad_tol``: every `segment` evaluations, 4 in float32 and
    16 in float64 by default, 9 and 38 with beta .5. Within that the gradient is as exact as that. In half precision
    (states, or autocast) all states are stored.

    The output is the last iterate (z_K for a budget), and `Solution.residual` is that of the last iterate too.

    Args:
        grad_tol: bound for what rounding may do to a point on the way back, relative to its size, in (0, 1).

    Raises:
        ValueError: an option outside its range; at construction of a `DEQ` or a solve, for another solver.

    Reference:
        S. McCallum, K. Arora, J. Foster (2025), Reversible deep equilibrium models. Deviates: states are stored where
        the way back would lose more than ``grad_tol``.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Linear(3, 3), solver="reversible", gradient="reversible",
        ...                 stop=deqlm.Stop(max_iter=8, rtol=0))
        >>> deq(torch.ones(2, 3)).sum().backward()
    """

    grad_tol: float = 1e-4

    def __post_init__(self) -> None:
        number("grad_tol", self.grad_tol, "in (0, 1)", lambda t: 0 < t < 1)

    def check(self, solve: Solve) -> None:
        super().check(solve)
        if not isinstance(solve.solver, ReversibleIteration):
            raise ValueError(
                f"gradient 'reversible' cannot run the steps of solver {solve.solver.name!r} backwards; use "
                "solver='reversible', or gradient='unrolled' with a solver whose steps can be differentiated"
            )
        require(solve.stop.keep == "best", "keep", solve.stop.keep, "'best' with gradient 'reversible'")

    def graphs(self, stop: Stop) -> int:
        return 1

    def segment(self, beta: float, dtype: torch.dtype) -> int:
        """Return after how many evaluations a pair of states is stored, >= 1.

        Examples:
            >>> Reversible().segment(0.5, torch.float32), Reversible().segment(0.5, torch.float64)
            (9, 38)
        """
        if dtype.itemsize < 4:
            return 1
        return max(1, math.floor(math.log(self.grad_tol / torch.finfo(dtype).eps) / -math.log1p(-beta)))

    def transform(self, at: Point) -> Tensor:
        if not at.differentiated:
            return at.f.given(at.z)
        raise RuntimeError(
            "gradient 'reversible' cannot be transformed by torch.func: it evaluates f again in backward, at points "
            "that it finds on the way, and torch.func knows no such backward; use gradient='unrolled', whose gradient "
            "is the same, with solver='reversible', or torch.autograd"
        )

    def run(self, solve: Solve, f: Map, z0: Tensor, layout: Layout) -> Solution:
        solver = solve.solver
        assert isinstance(solver, ReversibleIteration)
        if isinstance(f, RowMap):
            f.settle(z0)
        tape = _Tape(f, solver.beta, self.segment(solver.beta, evaluated_dtype(z0)))
        with set_checkpoint_early_stop(False):
            sol = run(solver, solve.seen(tape), z0, solve.stop, layout, graph=True).replace(solver=solver)
        if tape.needs:
            tape.close(sol.steps if solve.stop.is_budget else sol.steps - 1)
        return sol if sol.z.requires_grad else sol.replace(z=nothing(f, sol.z))


class _Tape:
    """f whose evaluations save nothing for backward: they are made again at points that come from the ones after.

    Args:
        f: the map.
        beta: of the iteration.
        every: evaluations between two pairs that are stored.

    Attributes:
        here, before: the last point evaluated and the one before it, (B, N); of a row that is done, the last two
            different ones.
        cursor: number, point and point before of the last evaluation that was made again.
    """

    def __init__(self, f: Map, beta: float, every: int) -> None:
        self.f, self.beta, self.every = f, beta, every
        self.needs: list[bool] = []
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}
        self.live: Tensor | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z), (B, N), with a graph."""
        k, now = len(self.needs), z.detach()
        if k == 0:
            self.before = now
        else:
            self.before = torch.where((now != self.here).any(1, keepdim=True), self.here, self.before)
        self.here = now
        if k % self.every == 0:
            self.stored[k] = now, self.before
        self.needs.append(z.requires_grad)
        self.live = z
        fz = checkpoint(partial(self._evaluate, k), use_reentrant=False, preserve_rng_state=False)
        self.live = None
        return fz  # type: ignore[return-value]

    def close(self, updates: Tensor) -> None:
        """Take how many updates each row has made, (B,)."""
        self.updates = updates[:, None]
        self.stored[len(self.needs) - 1] = self.here, self.before
        self.cursor = -1, self.here, self.before

    def _evaluate(self, k: int) -> Tensor:
        """Return f at point ``k``: while solving at the one that is there, in backward at the one that is found."""
        if self.live is not None:
            return self.f(self.live)
        point = self._point(k).detach().requires_grad_(self.needs[k])
        fz = self.f(point)
        self._go_back(k, point.detach(), fz.detach())
        return fz

    def _point(self, k: int) -> Tensor:
        """Return point ``k``, by evaluations that autograd has left out where it has not asked for the ones after."""
        if k in self.stored:
            return self.stored[k][0]
        if self.cursor[0] != k + 1:
            after = self._point(k + 1)
            with torch.no_grad():
                self._go_back(k + 1, after, self.f(after))
        _, after, point = self.cursor
        return torch.where(k < self.updates, point, after)

    def _go_back(self, k: int, point: Tensor, fz: Tensor) -> None:
        """Move the cursor to evaluation ``k``, whose value tells the point before."""
        if k in self.stored:
            before = self.stored[k][1]
        else:
            _, after, kept = self.cursor
            before = torch.where(k < self.updates, (after - self.beta * fz) / (1 - self.beta), kept)
        self.cursor = k, point, before
