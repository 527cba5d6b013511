"""Backpropagation through the solver's own steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deqlm.gradients.base import nothing, register_gradient
from deqlm.gradients.replayed import Replayed
from deqlm.gradients.through_steps import ThroughSteps
from deqlm.gradients.transformable import Point
from deqlm.wrap.failures import Failures
from deqlm.wrap.levels import outside
from deqlm.wrap.rows import RowMap
from deqlm_solvers import (
    Criterion,
    Evaluator,
    Layout,
    Map,
    Solution,
    Solve,
    Status,
    StepSolver,
    Stop,
    options,
)
from deqlm_solvers.core.checks import require
from deqlm_solvers.loop.loop import run

__all__ = ["Unrolled"]


@register_gradient("unrolled")
@options
class Unrolled(ThroughSteps):
    """Differentiate every step of the forward solve: the exact gradient of the truncated iteration, start included.

    The output is the last iterate (z_K for a budget), and `Solution.residual` is that of the last iterate too. So it is
    without grad, where nothing is added behind the solve, but for a row that did not converge: it returns its best
    point then, unless ``same_value=True``.

    Memory grows with the number of steps; ``checkpoint=True`` keeps one state per step and evaluates f again in
    backward. ``checkpoint="recursive"`` keeps about log2 of the number of steps states, solves once more to know how
    many there are, and evaluates f up to that logarithm times again. Needs a solver whose steps can be differentiated
    (`FixedPoint`).

    The warm-up of Schoene et al. (2025), n steps of which the first is undamped, is
    ``solver=FixedPoint(damping=0.8, first_damping=1.0), stop=Stop(max_iter=n, rtol=0), gradient=Unrolled()``.

    Args:
        checkpoint: recompute each evaluation of f in backward instead of storing its activations; "recursive"
            recomputes the states too, in halves of halves.
        same_value: return the last iterate without grad too, so that both values are equal in every row.

    Raises:
        ValueError: another ``checkpoint``; at construction of a `DEQ` or a solve, for a solver that writes its history
            in place.

    Reference:
        P. J. Werbos (1990), Backpropagation through time, Proc. IEEE 78; M. Schoene et al. (2025), Implicit language
        models are RNNs, ICML (the warm-up); A. Griewank (1992), Achieving logarithmic growth of temporal and spatial
        complexity in reverse automatic differentiation, Optim. Methods Softw. 1. Deviates: halves instead of binomial
        parts.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Linear(3, 3), solver="fixed_point", gradient="unrolled",
        ...                 stop=deqlm.Stop(max_iter=4, rtol=0))
        >>> deq(torch.ones(2, 3)).sum().backward()
    """

    checkpoint: bool | Literal["recursive"] = False
    same_value: bool = False

    def __post_init__(self) -> None:
        require(isinstance(self.same_value, bool), "same_value", self.same_value, "True or False")
        known = isinstance(self.checkpoint, bool) or self.checkpoint == "recursive"
        require(known, "checkpoint", self.checkpoint, "True, False or 'recursive'")

    def check(self, solve: Solve) -> None:
        super().check(solve)
        if "differentiable" not in solve.solver.guarantees or not isinstance(solve.solver, StepSolver):
            raise ValueError(
                f"gradient 'unrolled' cannot differentiate the steps of solver {solve.solver.name!r}; "
                "use solver='fixed_point', or gradient='implicit' or 'phantom'"
            )
        require(solve.stop.keep == "best", "keep", solve.stop.keep, "'best' with gradient 'unrolled'")

    def graphs(self, stop: Stop) -> int:
        return 1 if self.checkpoint else stop.max_iter

    def plain(self, solve: Solve, f: Map, z0: Tensor, layout: Layout, failures: Failures) -> Solution:
        if not self.same_value:
            return super().plain(solve, f, z0, layout, failures)
        return self.last_iterate(solve, f, z0, layout)

    def transform(self, at: Point) -> Tensor:
        if not at.differentiated:
            return at.f.given(at.z)
        if self.checkpoint:
            raise RuntimeError(
                f"gradient 'unrolled' with checkpoint={self.checkpoint!r} cannot be transformed by torch.func, which "
                "knows no activation checkpointing; use checkpoint=False"
            )
        solver, f, sol = at.by.solve.solver, at.f, at.sol
        assert isinstance(solver, StepSolver)
        with outside():
            steps = sol.steps if at.by.solve.stop.is_budget else sol.steps - 1
            count = int(steps.max()) if steps.numel() else 0
            masked = None if f.held is None else f.given(f.held.masked)
        evaluator = Evaluator(f.f, at.z0, at.by.layout.round and f.f.rows.round)
        replayed = Replayed(solver, evaluator, f.given(steps), masked)
        return replayed.straight(at.z0.to(evaluator.inner), count).to(at.z0.dtype)

    def run(self, solve: Solve, f: Map, z0: Tensor, layout: Layout) -> Solution:
        solver = solve.solver
        assert isinstance(solver, StepSolver)
        if self.checkpoint and isinstance(f, RowMap):
            f.settle(z0)
        if self.checkpoint == "recursive":
            return self._in_halves(solve, f, z0, layout)
        step = (lambda z: checkpoint(f, z, use_reentrant=False)) if self.checkpoint else f
        sol = run(solver, solve.seen(step), z0, solve.stop, layout, graph=True).replace(solver=solver)
        return sol if sol.z.requires_grad else sol.replace(z=nothing(f, sol.z))

    def _in_halves(self, solve: Solve, f: Map, z0: Tensor, layout: Layout) -> Solution:
        solver, stop = solve.solver, solve.stop
        assert isinstance(solver, StepSolver)
        sol = self.last_iterate(solve, f, z0, layout)
        evaluator = Evaluator(f, z0, layout.round)
        start = z0.to(evaluator.inner)
        steps = sol.steps if stop.is_budget else sol.steps - 1
        replayed = Replayed(solver, evaluator, steps, Criterion(stop, layout, start).masked)
        last = replayed.last(start).to(z0.dtype)
        z = torch.where((sol.status < int(Status.DIVERGED))[:, None], last, sol.z)
        return sol.replace(z=z if z.requires_grad else nothing(f, sol.z))
