"""What methods have in common that differentiate the steps of the forward solve."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from deqlm.gradients.base import Gradient, nothing
from deqlm.wrap.failures import Failures
from deqlm.wrap.rows import RowMap
from deqlm.wrap.solved_by import SolvedBy
from deqlm.wrap.sparing import spare
from deqlm_solvers import Adjoint, Layout, Map, Solution, Solve, StepSolver
from deqlm_solvers.core.checks import require
from deqlm_solvers.loop.loop import run

__all__ = ["ThroughSteps"]

STAY = "rows whose steps carry a graph stay in the batch"


class ThroughSteps(Gradient):
    """A method that solves with a graph; rows that fail are solved again with the inputs of others."""

    through_steps: ClassVar[bool] = True

    def check(self, solve: Solve) -> None:
        require(
            solve.stop.compact != "at_once", "compact", solve.stop.compact, f"True or False with {self.name!r}: {STAY}"
        )

    @abstractmethod
    def run(self, solve: Solve, f: Map, z0: Tensor, layout: Layout) -> Solution:
        """Solve from ``z0`` (B, N); the point carries the graph of its steps, or of nothing where there is none."""

    def forward(self, solve: Solve, f: Map, z0: Tensor, layout: Layout) -> tuple[Solution, SolvedBy]:
        return self.last_iterate(solve, f, z0, layout), SolvedBy(solve, layout)

    def last_iterate(self, solve: Solve, f: Map, z0: Tensor, layout: Layout) -> Solution:
        """Return what `run` does, without a graph."""
        solver = solve.solver
        assert isinstance(solver, StepSolver)
        evaluate = solve.seen(torch.no_grad()(lambda z: f(z)))
        return run(solver, evaluate, z0.detach(), solve.stop, layout, graph=True).replace(solver=solver)

    def connect(self, f: Map, z: Tensor, adjoint: Adjoint) -> Tensor:
        raise TypeError(f"gradient {self.name!r} differentiates the forward solve; it cannot connect a solved point")

    def attach(self, solve: Solve, f: RowMap, z0: Tensor, layout: Layout, failures: Failures) -> Solution:
        sol = self.run(solve, f, z0, layout)
        failures.report(sol, solve.stop)
        bad = failures.bad_rows(sol, solve.stop)
        spared = spare(f, z0, bad, layout.together)
        if spared is None:
            return sol.replace(z=nothing(f, sol.z.detach()), adjoint=failures.adjoint())
        sound, start, _ = spared
        here, together = bad is not None, layout.together
        if not (here if together is None else together.any(here, z0.device)):
            return sol.replace(adjoint=failures.adjoint())
        again = self.run(solve, sound, start, layout)
        z = again.z if bad is None else torch.where(bad[:, None], sol.z.detach(), again.z)
        return sol.replace(z=z, cost=sol.cost + again.cost, adjoint=failures.adjoint())
