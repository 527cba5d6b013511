"""The rule by which tokens of a causal map are frozen, and what became of each; on the host, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deqlm_solvers import Status, Stop
from deqlm_solvers.loop.runaway import FALLEN, GROWN

__all__ = ["FrozenPrefix"]

PASSES = 5
"""Evaluations in a row that a token passes before it is frozen: with two, the mean error of a window is twice that of
chunks of 16, whose tokens go on until the last one passes; with five it is below, for 8 % more tokens."""
TINY = 1e-300
"""Least divisor: no residual after a residual of zero is a ratio of zero."""


class FrozenPrefix:
    """Per row: the frozen tokens, a contiguous prefix, and the readings of those in the window behind it.

    A token is frozen at the point where `PASSES` evaluations in a row have passed, with all tokens before it frozen or
    passing, and r q / (1 - q) <= tol besides, with r its residual and q its ratio to the one before, clipped to
    [.1, .99]. A token passes only if besides its size, max(||z||, ||f(z)||), is at most 10 times its first, or its
    residual at most half of the largest that it has had. Padding is frozen with the token before it, and what stands
    before the first token from the beginning.

    Args:
        batch: rows B.
        length: tokens L.
        window: tokens behind the frozen ones that move.
        stop: ``max_iter`` evaluations without a token frozen; ``divergence`` times the largest residual with which a
            token of the row has begun.
        mask: (B, L) bool, True where a token counts; None counts all.

    Attributes:
        base: tokens that are committed, in all rows.
        front: tokens that are frozen, (B,).
    """

    def __init__(self, batch: int, length: int, window: int, stop: Stop, mask: Tensor | None) -> None:
        self.length, self.window, self.stop = length, min(window, length), stop
        self.padding = np.zeros((batch, length), dtype=bool) if mask is None else ~mask.cpu().numpy()
        self.base = 0
        self.real = _next_real(self.padding)
        self.front = self.real[:, 0]
        self.steps = np.zeros(batch, dtype=np.int64)
        self.idle = np.zeros(batch, dtype=np.int64)
        self.limit = np.zeros(batch)
        self.status = np.full(batch, int(Status.CONVERGED), dtype=np.int8)
        self.streak = np.zeros((batch, length), dtype=np.int64)
        self.age = np.zeros((batch, length), dtype=np.int64)
        self.settled = np.ones((batch, length), dtype=np.int64)
        self.last = np.full((batch, length), np.inf)
        self.enough = np.zeros((batch, length))
        self.most = np.zeros((batch, length))
        self.ran_away = np.zeros(batch, dtype=bool)
        self.residual = np.zeros((batch, length))
        self.relative = np.zeros((batch, length))
        self.least_commit = max(1, self.window // 2)

    def turn(self) -> tuple[Any, int, int]:
        """Return the rows (K,) that move next, and first and end (exclusive) of the tokens to evaluate."""
        reach = np.minimum(self.front + self.window, self.length)
        moving = (self.front < self.length) & (reach <= self.base + 2 * self.window)
        rows = np.flatnonzero(moving)
        return rows, self.base, int(reach[rows].max())

    def take(self, readings: Any, rows: Any, first: int, end: int) -> tuple[Any, Any]:
        """Note an evaluation; return which of its tokens (K, l) move on, and which of them for the first time.

        Args:
            readings: residual, relative residual, ratio and size of each token, (4, K, l).
            rows: indices (K,).
            first: first token.
            end: the one behind the last.
        """
        here = (rows if len(rows) < len(self.front) else slice(None), slice(first, end))
        position = np.arange(first, end)
        front = self.front[rows][:, None]
        frozen = position < front
        own = ~frozen & (position < front + self.window)
        padding = self.padding[here]
        residual, relative, ratio, size = np.where(padding, 0.0, readings)
        runs = self._runs_away(here, own, residual, size) & (ratio <= 1)
        passing = (ratio <= 1) & ~runs
        streak = np.where(np.logical_and.accumulate(frozen | passing, axis=1) & own, self.streak[here] + 1, 0)
        with np.errstate(invalid="ignore"):
            q = (residual / np.maximum(self.last[here], TINY)).clip(0.1, 0.99)
        sure = padding | ((streak >= PASSES) & (ratio * q <= 1 - q))
        behind = first + np.logical_and.accumulate(frozen | (sure & own), axis=1).sum(1)

        self.steps[rows] += 1
        idle = np.where(behind > front[:, 0], 0, self.idle[rows] + 1)
        self.idle[rows] = idle
        age = self.age[here]
        self.settled[here] = np.where(own & ~passing, age + 2, self.settled[here])
        self.streak[here] = streak
        self.last[here] = np.where(own, residual, self.last[here])
        self.residual[here] = np.where(own, residual, self.residual[here])
        self.relative[here] = np.where(own, relative, self.relative[here])
        first_time = age == 0
        self.age[here] = age + own
        stuck = idle >= self.stop.max_iter
        if stuck.any():
            behind = np.where(stuck, np.minimum(front[:, 0] + self.window, self.length), behind)
            self.idle[rows[stuck]] = 0
            missed = stuck & (own & ~passing).any(1)
            self.status[rows[missed]] = int(Status.MAX_ITER)
            away = stuck & (own & runs).any(1)
            self.status[rows[away]] = int(Status.DIVERGED)
            self.ran_away[rows[away]] = True
        self.limit[rows] = np.fmax(
            self.limit[rows], self.stop.divergence * np.where(own & first_time, residual, 0).max(1)
        )
        behind = self._end_failed(rows, np.where(own, residual, 0.0).max(1), behind)
        self.front[rows] = self.real[rows, behind]
        moves = own & (position >= behind[:, None]) & ~padding
        return moves, moves & first_time

    def review(self, ratios: Any, first: int, end: int) -> None:
        """Take f of all rows together at frozen tokens, after rows had waited outside: what no longer passes failed.

        Args:
            ratios: residual over tolerance, (B, l).
            first: first token.
            end: the one behind the last.
        """
        lost = (np.where(self.padding[:, first:end], 0.0, ratios) > 1.05).any(1)
        self.status[lost & (self.status == int(Status.CONVERGED))] = int(Status.MAX_ITER)

    def committable(self) -> int:
        """Return the end (exclusive) of what may be committed now; `base` where that is too little to pay."""
        low = int(self.front.min(initial=self.length))
        return low if low == self.length or low - self.base >= self.least_commit else self.base

    def summary(self) -> tuple[Tensor, ...]:
        """Return residual and relative residual of the worst token, steps, status, steps per token, and who ran away.

        (B,) each, but (B, L) for tokens.
        """
        settled = np.where(self.padding | (self.settled > self.age), 0, self.settled)
        worst = (self.residual.max(1), self.relative.max(1))
        arrays = (*worst, self.steps, self.status, settled, self.ran_away & (self.status == int(Status.DIVERGED)))
        return tuple(torch.from_numpy(a.copy()) for a in arrays)

    def _runs_away(self, here: Any, own: Any, residual: Any, size: Any) -> Any:
        """Return which tokens (K, l) would pass by their size only; plain steps take no leaps."""
        begins = self.age[here] == 0
        self.most[here] = np.where(own & begins, GROWN * size, self.most[here])
        self.enough[here] = np.fmax(self.enough[here], np.where(own, FALLEN * residual, 0.0))
        return own & (residual > self.enough[here]) & (size > self.most[here])

    def _end_failed(self, rows: Any, worst: Any, behind: Any) -> Any:
        """Return ``behind`` (K,), L for rows whose worst residual (K,) is not finite or beyond its limit."""
        lost = ~np.isfinite(worst)
        failed = lost | (worst > self.limit[rows])
        if not failed.any():
            return behind
        codes = np.where(lost, int(Status.NONFINITE), int(Status.DIVERGED))
        self.status[rows[failed]] = codes[failed]
        for table in (self.residual, self.relative):
            table[rows[lost]] = np.inf
        return np.where(failed, self.length, behind)


def _next_real(padding: Any) -> Any:
    """Return for each position, L included, the first at or behind it that is no padding, (B, L + 1); L for none."""
    batch, length = padding.shape
    position = np.where(padding, length, np.arange(length))
    position = np.concatenate([position, np.full((batch, 1), length)], axis=1)
    return np.minimum.accumulate(position[:, ::-1], axis=1)[:, ::-1].copy()
