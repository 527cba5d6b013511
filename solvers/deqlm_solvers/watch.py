"""Whether a row mixes or takes plain steps, which cost nothing and are enough where a map contracts everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Watch"]

IDLE_GAIN = 0.2
"""A mix gains little when it lowers the square of the residual by less than this share."""
IDLE_MIXES = 3
"""After so many mixes in a row that gained little, a row goes back to plain steps."""
IDLE_RATE = 0.7
"""It does so, and goes on with them, while each residual is at most this factor times the one before."""


COLLAPSED = 0.25
"""A mixed step collapses when it takes ||f(z)|| below this factor times the largest seen,"""
STUCK = 0.5
"""while ||r|| / ||f(z)|| stays above this factor times the smallest seen."""
WILD = 8.0
"""A point whose residual is above this factor times the first one says nothing of the scale."""
PASSED = 0.5
"""Plain steps away from there have arrived when the residual is below this factor times the largest on the way."""
AFTER_RATE = 0.8
"""From there on a row takes plain steps for as long as each residual is at most this factor times the one before."""
LONGEST_WAY = 40
"""Steps that a row may spend on such ways, all together, unless ||r|| / ||f(z)|| has halved there,"""
STEEPEST_WAY = 1e4
"""and the growth of its residual on each of them."""
SLOW_RATE = 0.5
"""Mixing is slow where the residual has not fallen to this factor"""
SLOW_MIXES = 8
"""within so many mixes in a row; plain steps are tried where it also grew along the last one."""


class Watch:
    """Per row, columns (B, 1): plain steps while the residual falls fast, or while mixing has shown to gain little.

    Mixing makes residuals small, so it runs to a root that repels, such as 0 of tanh(2 z), as gladly as to one that
    attracts. Where ||f(z)|| vanishes together with the residual no relative tolerance can pass. A row that goes there
    shows it: its scale collapses, its relative residual does not fall, and its residual grows along its step. Such a
    step is taken back, and plain steps lead away from the root until the residual has passed its peak.

    Args:
        plain_rate: factor from one residual to the next up to which a row takes plain steps from the start.
        norm: ||r_0||, float64.

    Attributes:
        plain: rows that take plain steps, bool.
        away: rows among them that leave a root that repels, bool.
        sets_out: rows that have just begun to, bool.
        arrived: rows that have just left one behind, bool.
        lost: rows whose way has just led nowhere, bool; they take no other one.
    """

    def __init__(self, plain_rate: float, norm: Tensor) -> None:
        self.plain = torch.ones_like(norm, dtype=torch.bool)
        self.away = self.sets_out = self.arrived = self.lost = torch.zeros_like(self.plain)
        self.below = torch.full_like(norm, plain_rate)
        self.later = max(IDLE_RATE, plain_rate)
        self.idle = torch.zeros_like(norm, dtype=torch.int64)
        self.way = torch.zeros_like(self.idle)
        self.first = self.last = self.from_norm = self.peak = norm
        self.size = torch.zeros_like(norm)
        self.relative = torch.full_like(norm, torch.inf)
        self.mark = norm
        self.since = torch.zeros_like(self.idle)

    def look(self, norm: Tensor, size: Tensor, outward: Tensor) -> Tensor:
        """Take a new point, before the step; return the rows that go back to the one before.

        Args:
            norm: ||r||.
            size: ||f(z)||.
            outward: rows whose residual grew along the step to this point.
        """
        rate = norm / self.last
        relative = norm / size
        collapsed = outward & (size <= COLLAPSED * self.size) & (relative >= STUCK * self.relative)
        back = ~self.plain & collapsed & (self.way < LONGEST_WAY)
        falls = self.plain | (norm <= SLOW_RATE * self.mark)
        self.mark = torch.where(falls, norm, self.mark)
        self.since = (self.since + 1).masked_fill(falls, 0)
        tame = norm <= WILD * self.first
        slow = outward & tame & (self.since >= SLOW_MIXES) & (self.way < LONGEST_WAY)
        self._go(norm, relative, back, slow & ~back)
        turned = ~self.plain & (self.idle >= IDLE_MIXES) & (rate <= IDLE_RATE)
        self.below = torch.where(turned, self.later, torch.where(self.arrived, AFTER_RATE, self.below))
        self.plain = self.away | turned | (self.plain & (rate <= self.below))
        mixes = ~self.plain
        self.size = torch.where(mixes & tame, torch.fmax(self.size, size), self.size)
        self.relative = torch.where(mixes, torch.fmin(self.relative, relative), self.relative)
        self.last = norm
        return back

    def _go(self, norm: Tensor, relative: Tensor, back: Tensor, on: Tensor) -> None:
        """Follow the ways from roots that repel; ``back`` and ``on`` start one."""
        self.way = self.way + self.away
        self.peak = torch.fmax(self.peak, norm)
        self.arrived = self.away & (norm <= PASSED * self.peak) & (relative <= self.relative)
        leads = (self.way < LONGEST_WAY) | (relative <= STUCK * self.relative)
        bears = leads & (norm <= STEEPEST_WAY * self.from_norm)
        self.lost = self.away & ~self.arrived & ~bears
        self.way = self.way.masked_fill(self.lost, LONGEST_WAY)
        start = torch.where(back, self.last, norm)
        self.sets_out = starts = back | on
        self.from_norm = torch.where(starts, start, self.from_norm)
        self.peak = torch.where(starts, start, self.peak)
        self.away = starts | (self.away & ~self.arrived & ~self.lost)

    def judge(self, gain: Tensor, square: Tensor) -> None:
        """Take what the mix gains, and the square of the residual that it lowers."""
        idle = (self.idle + 1).masked_fill(gain >= IDLE_GAIN * square, 0)
        self.idle = idle.masked_fill(self.plain, 0)
