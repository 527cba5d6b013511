"""Rows whose state runs away: the residual stands still, and grows small only beside the state."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FALLEN", "GROWN", "Runaway"]

FALLEN = 0.5
"""A residual that is at most this share of another one has come nearer to a solution."""
GROWN = 10.0
"""A row whose size is at most this many times that of its start has not run away."""
NEAR = 0.5
"""Points whose sizes differ by at most this share are near each other."""


class Runaway:
    """What a row must show besides a residual within tolerance, when the tolerance is relative to its size.

    On layers z + F(z) the state grows and ||f(z) - z|| does not fall, until it is small beside ||f(z)||. So a point
    passes only if its size, max(||z||, ||f(z)||), is at most 10 times that of the row's start, or its residual at most
    half of the row's first one, or, for a row that began where everything is small, at most half of what it was when
    the row first came within tolerance around here: where there is a solution the residual goes on falling. A solver
    that leaps far away and comes back has had large residuals, so half of the largest would tell nothing.

    Args:
        first: see `Frame`.

    Attributes:
        first: the same, of the first point that was taken where none was given.

    Examples:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> watch = Runaway(torch.stack((one, one)))
        >>> [watch.runs(one < 2, r * one, s * one).item() for r, s in ((1, 10), (1, 11), (1, 12), (0.5, 12))]
        [False, True, True, False]
    """

    def __init__(self, first: Tensor | None = None) -> None:
        self.first = first
        self._bounds: Tensor | None = None
        self._mark: Tensor | None = None

    def runs(self, within: Tensor, residual: Tensor, size: Tensor) -> Tensor:
        """Take one evaluation; return the rows, (B,) bool, that are within tolerance by their size only.

        Args:
            within: rows whose residual is within tolerance at a point of theirs, (B,) bool.
            residual: ||f(z) - z||, (B,) float64.
            size: max(||z||, ||f(z)||), (B,) float64.
        """
        now = torch.stack((residual, size))
        if self._bounds is None or self._mark is None:
            self.first = now if self.first is None else self.first
            self._bounds = self.first * torch.tensor([[FALLEN], [GROWN]], dtype=now.dtype, device=now.device)
            self._mark = torch.zeros_like(now)
        doubtful = within & (now > self._bounds).all(0)
        before, near = self._mark
        fresh = doubtful & ((size - near).abs() > NEAR * size)
        self._mark = torch.where(fresh, now, self._mark)
        return fresh | (doubtful & (residual > FALLEN * before))
