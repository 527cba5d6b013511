"""The reference engine, of torch operations: any device, any update rule, and the steps can carry a graph."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.backend import Backend, Knows, anything, may_leave
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.loop.method import Method
from deqlm_solvers.loop.trackers import make_tracker

__all__ = ["TorchBackend"]


class TorchBackend(Backend):
    """Steps by `StepSolver.step`, and keeps the books by a `Tracker`."""

    knows_stop: ClassVar[Knows] = dict.fromkeys(Stop.__dataclass_fields__, anything)  # type: ignore[attr-defined]
    knows_layout: ClassVar[Knows] = dict.fromkeys(Layout.__dataclass_fields__, anything)

    def __init__(self, method: Method, evaluator: Evaluator, stop: Stop, layout: Layout, z: Tensor) -> None:
        self.method = method
        self.evaluator = evaluator
        self.tracker = make_tracker(stop, layout, z, evaluator.eps)
        self.masked = self._masked = self.tracker.criterion.masked
        self.k = 0
        self.state = method.init(z)
        self.choice = method.picked(self.state)
        self.rows: Tensor | None = None
        self.whole: Evaluation | None = None

    def advance(self, k: int, at: Evaluation, last: bool) -> tuple[Tensor, bool]:
        tracker = self.tracker
        if self.rows is not None:
            assert self.whole is not None
            z = self.whole.z.index_copy(0, self.rows, at.z)
            at = Evaluation(z, self.whole.fz.index_copy(0, self.rows, at.fz))
        self.whole, self.k = at, k
        seen = at.detached() if torch.is_grad_enabled() else at
        final = self.method.final(self.state) if k else None
        asked = self.method.asks(at, self.state) if self.method.asks_host else None
        done = tracker.record(k, seen, last, final, asked)
        if done or (last and not tracker.steps_after_last):
            return at.z, False
        self.evaluator.wanted = None if asked is None or tracker.taken_up else self._wanted(asked)
        if tracker.taken_up:
            self.state = self.method.renew(at.z, self.state)
        z_next, self.state = self.method.step(self.evaluator, at, self.state)
        active = tracker.active
        if self.choice is not None and (choice := self.method.picked(self.state)) is not None:
            # what a row picked until it was done is kept; the state of a method goes on for rows that are
            now, names = choice
            self.choice = (now if active is None else torch.where(active, now, self.choice[0]), names)
        z = z_next if active is None else torch.where(active[:, None], z_next, at.z)
        if self.rows is not None:
            return z.index_select(0, self.rows), True
        if z is at.fz and not z.requires_grad:
            # f may own this tensor and write its next result into it
            z = z.clone()
        return z, True

    def _wanted(self, asked: Tensor) -> bool | None:
        """Return what was asked, read by itself where the stop test was not read; None where the host never looks."""
        if self.tracker.answer is not None or not self.tracker.stop.check_every:
            return self.tracker.answer
        return bool(asked)

    def rows_to_keep(self) -> Tensor | None:
        tracker, rows, whole = self.tracker, self.rows, self.whole
        if self.method.steps_evaluate or whole is None or tracker.active is None:
            return None
        count = tracker.count
        if count is None and tracker.stop.compact == "at_once":
            count = int(tracker.active.sum())
        present = whole.z.shape[0] if rows is None else rows.shape[0]
        if count is None or count in (0, present):
            return None
        if not may_leave(
            tracker.stop, self.k, count, present, len(whole.z), whole.z.shape[1], tracker.evaluations_left
        ):
            return None
        mask = tracker.active if rows is None else tracker.active.index_select(0, rows)
        return mask.nonzero().squeeze(1)

    def narrow(self, rows: Tensor, z: Tensor) -> Tensor:
        self.rows = rows if self.rows is None else self.rows.index_select(0, rows)
        if self.masked is not None:
            self.masked = self.masked.index_select(0, rows)
        return z.index_select(0, rows)

    def points(self) -> Tensor:
        return self.tracker.points()

    def apart(self, z: Tensor) -> bool:
        return self.tracker.apart(z)

    def review(self, at: Evaluation, take_up: bool) -> bool:
        self.rows, self.masked = None, self._masked
        self.whole = at if self.masked is None else at.held(self.masked)
        goes_on = self.tracker.review(self.k, self.whole, take_up)
        if goes_on:
            self.state = self.method.renew(self.whole.z, self.state)
        return goes_on

    def finish(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        sol = self.tracker.finish(z_last, cost, keep_last)
        return sol if self.choice is None else sol.replace(picked=self.choice[0], choices=self.choice[1])
