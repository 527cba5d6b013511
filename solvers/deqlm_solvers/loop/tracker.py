"""Device-side bookkeeping of one solve: what is finished, what is best, what is reported."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.processes import Processes
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.criterion import Criterion, Residuals
from deqlm_solvers.loop.runaway import Runaway, share_left
from deqlm_solvers.loop.schedule import Schedule, make_schedule

__all__ = ["STILL_PASSES", "RowTracker", "Tracker"]

BEYOND = math.nextafter(1.0, 2.0)
"""Ratio of a point within tolerance that is no solution, because the row runs away."""
STILL_PASSES = 1.05
"""Ratio of residual and tolerance up to which a row still passes, evaluated with others than before."""


class Tracker(ABC):
    """Records every evaluation of a solve; the only part that knows the `Stop`.

    Attributes:
        steps_after_last: whether the point after the last evaluation is wanted.
        active: rows that are not done, (B,) bool, of which alone the point moves; None where all go on to the end.
        taken_up: whether rows that were done go on since the last evaluation.
        count: how many rows are active, if the host has just read it, else None.
        answer: what was ``asked`` in the last `record`, if the host has read it, else None.
    """

    steps_after_last = False
    active: Tensor | None = None
    taken_up = False
    count: int | None = None
    answer: bool | None = None

    def __init__(self, stop: Stop, layout: Layout, z: Tensor, eps: float) -> None:
        self.stop = stop
        self.criterion = Criterion(stop, layout, z)
        self.together = (layout.together or Processes()) if stop.collective else None
        self.trace: list[Tensor] = []

    @abstractmethod
    def record(
        self, k: int, at: Evaluation, last: bool, final: Tensor | None = None, asked: Tensor | None = None
    ) -> bool:
        """Take evaluation number ``k`` (from 0); say whether every row is known to be done. May read the device.

        Args:
            k: number of the evaluation.
            at: the evaluation.
            last: no other one follows.
            final: see `StepSolver.final`.
            asked: see `StepSolver.asks`; read where the host looks anyway.
        """

    def evaluations_left(self) -> float:
        """Return how many evaluations the slowest active row still needs at its mean rate so far; may read that."""
        return 0.0

    def points(self) -> Tensor:
        """Return the points that would be returned now, (B, N)."""
        raise NotImplementedError

    def apart(self, z: Tensor) -> bool:
        """Say whether a row passed at ``z`` (B, N), the last points, beside others that return another point."""
        return False

    def review(self, k: int, at: Evaluation, take_up: bool) -> bool:
        """Take f at `points`, of all rows together after some had left; say whether a row no longer passes.

        Such rows are active again with ``take_up``, after evaluation ``k``.
        """
        return False

    @abstractmethod
    def finish(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        """Return the solution; ``z_last`` is the last point of the loop, (B, N).

        With ``keep_last`` the solution is the last point, with its graph and its residual, and not the best one, but
        for rows that end NONFINITE or DIVERGED.
        """

    def _traced(self) -> Tensor | None:
        return torch.stack(self.trace) if self.stop.trace else None


class RowTracker(Tracker):
    """Freezes each row at its first passing point; otherwise keeps its best one.

    Where f mixes rows, a row that passed may no longer do so when the last one is done, because its neighbours moved.
    It is then taken up again, so that CONVERGED holds for all rows at once.

    A point that the update rule refuses (see `StepSolver.final`) is none of the row's: it is neither its best nor its
    last one, and does not end it.
    """

    def __init__(self, stop: Stop, layout: Layout, z: Tensor, eps: float) -> None:
        super().__init__(stop, layout, z, eps)
        rows, device = z.shape[0], z.device
        self.schedule: Schedule = make_schedule(stop, z)
        self.active: Tensor = torch.ones(rows, dtype=torch.bool, device=device)
        self.best_z = z.detach().clone()
        self.best_ratio = torch.full((rows,), torch.inf, dtype=torch.float64, device=device)
        self.best = torch.full((2, rows), torch.inf, dtype=torch.float64, device=device)
        self.last = self.best
        self.steps = torch.zeros(rows, dtype=torch.int64, device=device)
        self.stalled: Tensor | None = None
        self.spare = rows - math.ceil(stop.share * rows)
        self.limit = self.best_ratio
        self.k = 0
        self.halfway: Tensor | None = None
        self._foresees, self._left = False, None
        self.runaway = Runaway(layout.first, share_left(stop.rtol, eps), eps)
        if stop.patience is not None:
            self.mark = self.best_ratio.clone()
            self.since = torch.zeros_like(self.steps)
            self.stalled = torch.zeros_like(self.active)
        if stop.per == "token":
            self.best_prefix = torch.zeros_like(self.steps)
            self.token_steps: Tensor | None = None

    def record(
        self, k: int, at: Evaluation, last: bool, final: Tensor | None = None, asked: Tensor | None = None
    ) -> bool:
        self.k, self.count, self.answer, self.taken_up = k, None, None, False
        tested = self.schedule.due(k, last, self.active)
        if tested is None:
            if self.stop.trace:
                self.trace.append(torch.full_like(self.best_ratio, torch.nan))
            return False
        reading = self.criterion(at)
        if k == 0:
            self.limit = reading.residual * self.stop.divergence
            self.first_ratio = reading.ratio
        self.reading = reading
        if self.stop.trace:
            shown = tested | ~self.active
            self.trace.append(torch.where(shown, reading.residual, torch.full_like(self.best_ratio, torch.nan)))
        self.steps.masked_fill_(tested, k + 1)
        bounded = reading.residual <= self.limit
        counts = tested if final is None else tested & (bounded | final)
        now = torch.stack((reading.residual, reading.relative))
        self.last = torch.where(counts, now, self.last)
        within = reading.ratio <= 1 if counts is self.active else (reading.ratio <= 1) & counts
        runs = self.runaway.runs(within, reading.residual, reading.size)
        ratio = reading.ratio.masked_fill(runs, BEYOND)
        grown = self._keep_best(k, counts, reading, ratio, now, at.z)
        stays = (ratio > 1) & bounded
        if final is not None:
            stays |= tested & ~counts
        if self.stalled is not None:
            stays &= self._progressing(k, tested, counts, reading, grown)
        self.active = self.active & (stays if tested is self.active else stays | ~tested)
        if 2 * (k + 1) >= self.stop.max_iter:
            self._note_halfway(tested)
        if not self.schedule.together:
            self.schedule.plan(k, tested, self.active, reading.ratio)
        if not self.schedule.looks:
            return False
        plain = asked is None and not self._foresees
        self.count = count = int(self.active.sum()) if plain else self._look(asked)
        done = count <= self.spare and (bool(count) or not self._take_up_lost(k))
        return done if self.together is None else not self.together.any(not done, self.active.device)

    def _look(self, asked: Tensor | None) -> int:
        """Return how many rows are active; the same read tells what else the host wants to know."""
        wanted = [self.active.sum(), *([] if asked is None else [asked])]
        if self._foresees:
            wanted.append(self._evaluations_left())
        count, *rest = torch.stack([t.double() for t in wanted]).tolist()
        self.answer = None if asked is None else bool(rest[0])
        self._left = rest[-1] if self._foresees else None
        return int(count)

    def _note_halfway(self, tested: Tensor) -> None:
        """Keep the residuals of each row's first test in the second half of ``max_iter``."""
        if self.schedule.together:
            self.halfway = self.last if self.halfway is None else self.halfway
        else:
            before = torch.full_like(self.last, torch.inf) if self.halfway is None else self.halfway
            self.halfway = torch.where(tested & before[0].isinf(), self.last, before)

    def points(self) -> Tensor:
        return self.best_z

    def apart(self, z: Tensor) -> bool:
        if z.shape[0] in (1, self.count):
            return False
        return bool((self.best_ratio <= 1).any() & (self.best_z != z).any())

    def review(self, k: int, at: Evaluation, take_up: bool) -> bool:
        self.reading = self.criterion(at)
        if take_up and self._take_up_lost(k):
            return True
        worse = self.reading.ratio > STILL_PASSES * self.best_ratio.clamp_min(1.0)
        self.best = torch.where(worse, torch.stack((self.reading.residual, self.reading.relative)), self.best)
        return False

    def _take_up_lost(self, k: int) -> bool:
        """Go on with rows that no longer pass; say whether there is one. Reads the device."""
        lost = self._lost()
        if not bool(lost.any()):
            return False
        self.active = self.active | lost
        self._take_back(lost)
        self.schedule.reopen(k, lost)
        self.taken_up = True
        return True

    def evaluations_left(self) -> float:
        # from now on it comes with the number of active rows: rows that are to leave may wait for their turn long
        self._foresees = True
        return float(self._evaluations_left()) if self._left is None else self._left

    def _evaluations_left(self) -> Tensor:
        ratio = self.reading.ratio
        fallen, left = (self.first_ratio / ratio).log(), ratio.log()
        need = torch.where(fallen > 0, left / fallen * self.k, torch.inf).nan_to_num(nan=torch.inf)
        return torch.where(self.active, need, 0.0).max()

    def finish(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        self._take_back(self._lost())
        status = self._status()
        z, (residual, relative) = self.best_z, self.best
        if keep_last:
            sound = status < int(Status.DIVERGED)
            z = torch.where(sound[:, None], z_last, z)
            residual, relative = torch.where(sound, self.last, self.best)
        return Solution(
            z=z,
            residual=residual,
            relative=relative,
            steps=self.steps,
            status=status,
            cost=cost,
            trace=self._traced(),
            token_steps=self._token_steps(),
            runaway=(self.best_ratio == BEYOND) & (status == int(Status.DIVERGED)),
            first=self.runaway.first,
        )

    def _lost(self) -> Tensor:
        """Return rows that passed and no longer do, as f mixes rows; the slack is for rounding of another call."""
        return (self.best_ratio <= 1) & (self.reading.ratio > STILL_PASSES)

    def _take_back(self, lost: Tensor) -> None:
        """Take back that rows (B,) passed; they show what they have now."""
        now = torch.stack((self.reading.residual, self.reading.relative))
        self.best_ratio = self.best_ratio.masked_fill(lost, torch.inf)
        self.best, self.last = (torch.where(lost, now, shown) for shown in (self.best, self.last))

    def _keep_best(
        self, k: int, tested: Tensor, reading: Residuals, ratio: Tensor, now: Tensor, z: Tensor
    ) -> Tensor | None:
        """Update the best point; return where the converged prefix grew (per="token" only).

        ``ratio`` is that of the reading, but `BEYOND` where the row runs away: better than what misses the tolerance,
        worse than what passes.
        """
        better = tested & (ratio < self.best_ratio)
        grown = None
        if self.stop.per == "token" and reading.groups is not None:
            passing = reading.groups <= 1
            prefix = passing.long().cumprod(1).sum(1)
            finite = tested & reading.ratio.isfinite()
            grown = finite & (prefix > self.best_prefix)
            better = grown | (better & (prefix == self.best_prefix))
            self.best_prefix = torch.where(grown, prefix, self.best_prefix)
            if self.token_steps is None:
                self.token_steps = torch.ones_like(passing, dtype=torch.int64)
            self.token_steps.masked_fill_(tested[:, None] & ~passing, k + 2)
        self.best_ratio = torch.where(better, ratio, self.best_ratio)
        self.best = torch.where(better, now, self.best)
        self.best_z = torch.where(better[:, None], z, self.best_z)
        return grown

    def _progressing(self, k: int, tested: Tensor, counts: Tensor, reading: Residuals, grown: Tensor | None) -> Tensor:
        assert self.stalled is not None and self.stop.patience is not None
        progress = counts & (reading.ratio < 0.9 * self.mark)
        self.mark = torch.where(progress, reading.ratio, self.mark)
        if grown is not None:
            progress |= grown
        self.since.masked_fill_(progress, k)
        patient = (k - self.since) < self.stop.patience
        self.stalled |= tested & ~patient
        return patient

    def _status(self) -> Tensor:
        """Combine what was seen, by precedence: later lines win."""
        residual, relative = self.last
        status = torch.full_like(self.steps, int(Status.MAX_ITER), dtype=torch.int8)
        if self.halfway is not None and self.stop.patience is None and self.stop.max_iter >= 8:
            vanishing = (residual <= 0.75 * self.halfway[0]) & (relative >= 0.9 * self.halfway[1])
            status.masked_fill_(vanishing, int(Status.STALLED))
        if self.stalled is not None:
            status.masked_fill_(self.stalled, int(Status.STALLED))
        status.masked_fill_((residual > self.limit) | (self.best_ratio == BEYOND), int(Status.DIVERGED))
        status.masked_fill_(~residual.isfinite(), int(Status.NONFINITE))
        status.masked_fill_(self.best_ratio <= 1, int(Status.CONVERGED))
        return status

    def _token_steps(self) -> Tensor | None:
        if self.stop.per != "token" or self.token_steps is None:
            return None
        settled = self.token_steps <= self.steps[:, None]
        if self.criterion.mask is not None:
            settled &= self.criterion.mask
        return torch.where(settled, self.token_steps, 0)
