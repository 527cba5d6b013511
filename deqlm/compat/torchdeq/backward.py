"""The backward solve of torchdeq's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from deqlm.compat.torchdeq.registered import registered_rule
from deqlm.compat.torchdeq.settings import Settings
from deqlm.compat.torchdeq.solvers import rule_of
from deqlm.compat.torchdeq.watch import SolverStat, Watch
from deqlm_solvers import Layout, Map, Solution, Solve, Solver, Stop

__all__ = ["Reporting", "backward_solve"]


def backward_solve(settings: Settings, writer: Callable[[SolverStat], Any] | None) -> Solve:
    """Return the solve of a cotangent.

    Its tolerance is relative to the incoming gradient in both modes, so the scale of the loss cannot change a gradient.
    """
    s = settings
    rule = registered_rule(s.b_solver, {}) or rule_of(s.b_solver, s.b_max_iter, {})
    tests = rule.tests and s.b_tol > 0
    stop = Stop(max_iter=s.b_max_iter, rtol=s.b_tol if tests else 0.0)
    return Solve(rule.solver if writer is None else Reporting(rule.solver, writer), stop)


class Reporting(Solver):
    """A solver whose numbers somebody is told when it is done.

    Args:
        inner: the solver.
        writer: is called with them.
    """

    name = "reporting"

    def __init__(self, inner: Solver, writer: Callable[[SolverStat], Any]) -> None:
        self.inner, self.writer = inner, writer
        self.honours = inner.honours  # type: ignore[misc]
        self.guarantees = inner.guarantees  # type: ignore[misc]

    def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
        watch = Watch(f, z0.shape[0])
        sol = self.inner.solve(watch, z0, stop, layout)
        self.writer(watch.info("abs", z0.device, final=stop.is_budget))
        return sol
