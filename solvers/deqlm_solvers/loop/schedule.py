"""Which evaluations are tested, and when the host may look."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from deqlm_solvers.core.stop import Stop

__all__ = ["Schedule", "make_schedule"]

LONGEST_GAP = 8
NEVER = torch.iinfo(torch.int64).max
"""When a row is due that is done."""


class Schedule(ABC):
    """Decides which evaluations are tested, for which rows, and when "is every row done" is read.

    Attributes:
        together: whether all rows that are active are tested at the same evaluations.
        looks: whether the host reads, after the evaluation of the last `due` and `plan`, how many rows are active.
    """

    together = True
    looks = False

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    @abstractmethod
    def due(self, k: int, last: bool, active: Tensor) -> Tensor | None:
        """Return the rows, (B,) bool of those ``active``, that evaluation ``k`` (from 0) is tested for.

        None where it is tested for no row; the last one always is.
        """

    def plan(self, k: int, tested: Tensor, active: Tensor, ratio: Tensor) -> None:
        """Take the outcome of a test; ``ratio`` is residual over tolerance, (B,)."""
        return

    def reopen(self, k: int, rows: Tensor) -> None:
        """Take note that ``rows`` (B,) are active again after evaluation ``k``."""
        return


class Regular(Schedule):
    """Every n-th evaluation, from the first on, and the last one."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop)
        assert isinstance(stop.test_every, int)
        self.every = stop.test_every
        self.looked = 0

    def due(self, k: int, last: bool, active: Tensor) -> Tensor | None:
        tested = k % self.every == 0 or last
        self.looks = tested and 0 < self.stop.check_every <= k + 1 - self.looked
        if self.looks:
            self.looked = k + 1
        return active if tested else None


class Predicted(Schedule):
    """Each row is tested when its own rate says that it may pass; at most 8 evaluations ahead.

    The host reads one number per test: the nearest evaluation at which an active row is due.
    """

    together = False

    def __init__(self, stop: Stop, z: Tensor) -> None:
        super().__init__(stop)
        self.next = 0
        self.at = torch.zeros(z.shape[0], dtype=torch.int64, device=z.device)
        self.gap = torch.ones_like(self.at)
        self.before = torch.full((z.shape[0],), torch.nan, dtype=torch.float64, device=z.device)

    def due(self, k: int, last: bool, active: Tensor) -> Tensor | None:
        if last:
            return active.clone()
        return active & (self.at <= k) if k >= self.next else None

    def plan(self, k: int, tested: Tensor, active: Tensor, ratio: Tensor) -> None:
        rate = (ratio.log() - self.before.log()) / self.gap
        left = -ratio.log() / rate
        known = rate.isfinite() & (rate < 0)
        ahead = torch.where(known, 0.7 * left, 1.0).nan_to_num(1.0).clamp(1, LONGEST_GAP).long()
        self.gap = torch.where(tested, ahead, self.gap)
        self.before = torch.where(tested, ratio, self.before)
        self.at = torch.where(tested, k + ahead, self.at)
        if active.numel():
            self.next = int(torch.where(active, self.at, NEVER).min())
        else:
            self.next = NEVER
        self.looks = self.next == NEVER

    def reopen(self, k: int, rows: Tensor) -> None:
        self.next, self.looks = k + 1, False
        self.at = self.at.masked_fill(rows, k + 1)


def make_schedule(stop: Stop, z: Tensor) -> Schedule:
    """Return the schedule of ``stop.test_every`` for rows ``z`` (B, N)."""
    return Predicted(stop, z) if stop.test_every == "auto" else Regular(stop)
