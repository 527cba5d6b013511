"""The books of solves that freeze no row, and the choice of a tracker."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.norms import lengths
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.runaway import Runaway, share_left
from deqlm_solvers.loop.tracker import RowTracker, Tracker

__all__ = ["make_tracker"]


def make_tracker(stop: Stop, layout: Layout, z: Tensor, eps: float) -> Tracker:
    """Return the tracker that a `Stop` asks for, for a solve from ``z`` (B, N) of an f that resolves ``eps``."""
    kind = BudgetTracker if stop.is_budget else BestMapTracker if stop.keep == "best_f" else RowTracker
    return kind(stop, layout, z, eps)


class BudgetTracker(Tracker):
    """Tests nothing: a fixed number of evaluations and steps."""

    steps_after_last = True

    def __init__(self, stop: Stop, layout: Layout, z: Tensor, eps: float) -> None:
        super().__init__(stop, layout, z, eps)
        self.start = z.detach()

    def record(
        self, k: int, at: Evaluation, last: bool, final: Tensor | None = None, asked: Tensor | None = None
    ) -> bool:
        self.last = at
        if self.stop.trace:
            self.trace.append(self.criterion(at).residual)
        return False

    def finish(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        reading = self.criterion(self.last)
        z = z_last if keep_last else z_last.detach()
        size = lengths(z.detach())
        sound = reading.residual.isfinite() & size.isfinite()
        status = torch.where(sound, int(Status.BUDGET), int(Status.NONFINITE)).to(torch.int8)
        return Solution(
            z=torch.where(sound[:, None], z, self.start),
            residual=torch.where(sound, reading.residual, torch.inf),
            relative=torch.where(sound, reading.relative, torch.inf),
            steps=torch.full_like(status, self.stop.max_iter, dtype=torch.int64),
            status=status,
            cost=cost,
            residual_of="previous",
            trace=self._traced(),
        )


class BestMapTracker(Tracker):
    """Keeps f(z) at the tested z with the smallest ||f(z) - z|| / (||f(z)|| + 1e-9); no row is frozen.

    A row that runs away (`Runaway`) ends the loop like any other, as the rule has it, and is told DIVERGED.

    Reference: the rule of torchdeq 0.1.0, fixed_point_iter, with which M. Schoene et al. (2025), Implicit language
    models are RNNs, ICML, trained.
    """

    def __init__(self, stop: Stop, layout: Layout, z: Tensor, eps: float) -> None:
        super().__init__(stop, layout, z, eps)
        self.best_f = z.detach()
        self.best_relative = torch.full((z.shape[0],), torch.inf, dtype=torch.float64, device=z.device)
        self.best_residual = self.best_relative.clone()
        self.relative = self.best_relative
        self.runaway = Runaway(layout.first, share_left(stop.rtol, eps), eps)
        self.runs = torch.ones(z.shape[0], dtype=torch.bool, device=z.device)
        self.over = torch.zeros((), dtype=torch.bool, device=z.device)
        self.evaluations = torch.zeros((), dtype=torch.int64, device=z.device)

    def record(
        self, k: int, at: Evaluation, last: bool, final: Tensor | None = None, asked: Tensor | None = None
    ) -> bool:
        reading = self.criterion(at)
        relative = reading.residual / (self.criterion.norm(at.fz) + 1e-9)
        better = (relative < self.best_relative) & ~self.over
        runs = self.runaway.runs(relative < self.stop.rtol, reading.residual, reading.size)
        self.runs = torch.where(better, runs, self.runs)
        self.best_relative = torch.where(better, relative, self.best_relative)
        self.best_residual = torch.where(better, reading.residual, self.best_residual)
        self.best_f = torch.where(better[:, None], at.fz, self.best_f)
        if self.stop.trace:
            self.trace.append(reading.residual)
        self.relative = torch.where(self.over, self.relative, relative)
        self.evaluations = self.evaluations + ~self.over
        failing = (~(self.relative < self.stop.rtol)).sum()
        self.over = (failing if self.together is None else self.together.total(failing)) == 0
        every, self.answer = self.stop.check_every, None
        if not (every > 0 and (k + 1) % every == 0):
            return False
        if asked is None:
            return bool(self.over)
        over, self.answer = torch.stack((self.over, asked)).tolist()
        return over

    def finish(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        status = torch.full_like(self.best_relative, int(Status.MAX_ITER), dtype=torch.int8)
        status.masked_fill_(~self.relative.isfinite(), int(Status.NONFINITE))
        passes = self.best_relative < self.stop.rtol
        status.masked_fill_(passes & self.runs, int(Status.DIVERGED))
        status.masked_fill_(passes & ~self.runs, int(Status.CONVERGED))
        return Solution(
            z=self.best_f,
            residual=self.best_residual,
            relative=self.best_relative,
            steps=self.evaluations.expand(status.shape).clone(),
            status=status,
            cost=cost,
            residual_of="previous",
            trace=self._traced(),
            runaway=passes & self.runs,
            first=self.runaway.first,
        )
