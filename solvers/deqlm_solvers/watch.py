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


class Watch:
    """Per row, columns (B, 1): plain steps while the residual falls fast, or while mixing has shown to gain little.

    Args:
        plain_rate: factor from one residual to the next up to which a row takes plain steps from the start.
        norm: ||r_0||, float64.

    Attributes:
        plain: rows that take plain steps, bool.
    """

    def __init__(self, plain_rate: float, norm: Tensor) -> None:
        self.plain = torch.ones_like(norm, dtype=torch.bool)
        self.below = torch.full_like(norm, plain_rate)
        self.later = max(IDLE_RATE, plain_rate)
        self.idle = torch.zeros_like(norm, dtype=torch.int64)
        self.last = norm

    def look(self, norm: Tensor) -> None:
        """Take the residual of a new point, before the step."""
        rate = norm / self.last
        self.last = norm
        turned = ~self.plain & (self.idle >= IDLE_MIXES) & (rate <= IDLE_RATE)
        self.below = torch.where(turned, self.later, self.below)
        self.plain = turned | (self.plain & (rate <= self.below))

    def judge(self, gain: Tensor, square: Tensor) -> None:
        """Take what the mix gains, and the square of the residual that it lowers."""
        idle = (self.idle + 1).masked_fill(gain >= IDLE_GAIN * square, 0)
        self.idle = idle.masked_fill(self.plain, 0)
