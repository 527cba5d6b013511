"""What happens between two evaluations of f: test, keep, step, freeze."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from deqlm_solvers.core.layout import Frame
from deqlm_solvers.core.solution import Cost, Solution
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.evaluator import CountedMap
from deqlm_solvers.loop.method import Method
from deqlm_solvers.loop.tracker import open_ledger

__all__ = ["LEAST_GAIN", "LEAST_LEFT", "Pace", "TorchPace", "may_leave", "pays"]

LEAST_GAIN = 2048
"""Unknowns that must leave for the rest to be gathered: below, f costs its calls and not its arithmetic."""
LEAST_LEFT = 6
"""Evaluations that the slowest row must still need at its mean rate so far, for the rest to be gathered."""


class Pace(ABC):
    """One solve's stopping rule and update rule, between evaluations.

    Attributes:
        masked: unknowns of tokens that do not count, (B, N) bool, or None.
    """

    masked: Tensor | None = None

    def held(self, at: Evaluation) -> Evaluation:
        """Return ``at`` without what f makes of tokens that do not count: NaN there must not reach the algebra."""
        return at if self.masked is None else at.held(self.masked)

    @abstractmethod
    def take(self, k: int, at: Evaluation, last: bool) -> tuple[Tensor, bool]:
        """Take evaluation ``k`` (from 0); return the point to evaluate next, and whether to go on.

        Args:
            k: number of the evaluation.
            at: the evaluation, of the rows that are present.
            last: no further evaluation can be paid.
        """

    @abstractmethod
    def leaving(self) -> Tensor | None:
        """Return the rows that stay, indices (K,) into those present, if the others leave by `may_leave`; else None."""

    @abstractmethod
    def narrow(self, rows: Tensor, z: Tensor) -> Tensor:
        """Go on with ``rows`` (K,) of those present; return their part of the point ``z``, (K, N)."""

    @abstractmethod
    def points(self) -> Tensor:
        """Return the points that would be returned now, (B, N), of all rows."""

    @abstractmethod
    def apart(self, z: Tensor) -> bool:
        """Say whether a row passed at ``z`` (B, N), the last points, beside others that return another point.

        Where f mixes rows, what it passed beside is then not what is returned. Reads the device.
        """

    @abstractmethod
    def review(self, at: Evaluation, take_up: bool) -> bool:
        """Take f at `points`, of all rows together after some had left; all are present from now on.

        Returns whether rows that passed on their own no longer do, and go on; never without ``take_up``.
        """

    @abstractmethod
    def close(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        """Return the solution, (B, N); see `Ledger.close`. ``z_last`` is not read where rows have left."""


def pays(active: int, present: int, unknowns: int) -> bool:
    """Say whether the rows that are done are worth leaving out, going by numbers alone, so that runs repeat."""
    return 2 * active <= present and (present - active) * unknowns >= LEAST_GAIN


def may_leave(
    stop: Stop, k: int, active: int, present: int, rows: int, unknowns: int, left: Callable[[], float]
) -> bool:
    """Say whether the rows that are done leave now; ``left()`` is what the slowest other one still needs.

    The first that leave cost a probe of the others and, at the end, an evaluation of all.

    Args:
        stop: says when.
        k: number of the evaluation, from 0.
        active: rows that are not done.
        present: rows in the batch.
        rows: B.
        unknowns: N.
        left: returns evaluations.
    """
    most = stop.max_iter - (k + 1)
    if stop.compact == "at_once":
        price = active + rows if present == rows else 0
        return 0 < active < present and most * (present - active) > price
    return active > 0 and most >= LEAST_LEFT and pays(active, present, unknowns) and left() >= LEAST_LEFT


class TorchPace(Pace):
    """The reference, of torch operations: any device, any solver, and the steps can carry a graph."""

    def __init__(self, solver: Method, evaluate: CountedMap, stop: Stop, frame: Frame, z: Tensor) -> None:
        self.solver = solver
        self.evaluate = evaluate
        self.ledger = open_ledger(stop, frame, z, evaluate.eps)
        self.masked = self._masked = self.ledger.measure.masked
        self.k = 0
        self.state = solver.init(z)
        self.chosen = self.solver.picked(self.state)
        self.rows: Tensor | None = None
        self.whole: Evaluation | None = None

    def take(self, k: int, at: Evaluation, last: bool) -> tuple[Tensor, bool]:
        if self.rows is not None:
            assert self.whole is not None
            z = self.whole.z.index_copy(0, self.rows, at.z)
            at = Evaluation(z, self.whole.fz.index_copy(0, self.rows, at.fz))
        self.whole, self.k = at, k
        self.ledger.record(k, at.detached(), last, self.solver.final(self.state) if k else None)
        if self.ledger.finished(k, last) or (last and not self.ledger.steps_after_last):
            return at.z, False
        if self.ledger.taken_up:
            self.state = self.solver.renew(at.z, self.state)
        z_next, self.state = self.solver.step(self.evaluate.call, at, self.state)
        self._remember_choice()
        z = self.ledger.freeze(z_next, at.z)
        if self.rows is not None:
            return z.index_select(0, self.rows), True
        if z is at.fz and not z.requires_grad:
            # f may own this tensor and write its next result into it
            z = z.clone()
        return z, True

    def leaving(self) -> Tensor | None:
        if self.solver.steps_evaluate or self.whole is None:
            return None
        present, unknowns = self.whole.z.shape if self.rows is None else (self.rows.shape[0], self.whole.z.shape[1])
        count, active, stop = self.ledger.active_rows(), self.ledger.active, self.ledger.stop
        if count is None and active is not None and stop.compact == "at_once":
            count = int(active.sum())
        if count is None or active is None:
            return None
        rows = self.whole.z.shape[0]
        if not may_leave(stop, self.k, count, present, rows, unknowns, self.ledger.evaluations_left):
            return None
        mask = active if self.rows is None else active.index_select(0, self.rows)
        return mask.nonzero().squeeze(1)

    def narrow(self, rows: Tensor, z: Tensor) -> Tensor:
        self.rows = rows if self.rows is None else self.rows.index_select(0, rows)
        if self.masked is not None:
            self.masked = self.masked.index_select(0, rows)
        return z.index_select(0, rows)

    def points(self) -> Tensor:
        return self.ledger.points()

    def apart(self, z: Tensor) -> bool:
        return self.ledger.apart(z)

    def review(self, at: Evaluation, take_up: bool) -> bool:
        self.rows, self.masked = None, self._masked
        self.whole = self.held(at)
        goes_on = self.ledger.review(self.k, self.whole, take_up)
        if goes_on:
            self.state = self.solver.renew(self.whole.z, self.state)
        return goes_on

    def close(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        sol = self.ledger.close(z_last, cost, keep_last)
        return sol if self.chosen is None else sol.replace(picked=self.chosen[0], choices=self.chosen[1])

    def _remember_choice(self) -> None:
        """Keep what a row picked until it was done; the state of a method goes on for rows that are."""
        picked = self.solver.picked(self.state)
        if picked is None or self.chosen is None:
            return
        active = self.ledger.active
        now = picked[0] if active is None else torch.where(active, picked[0], self.chosen[0])
        self.chosen = (now, picked[1])
