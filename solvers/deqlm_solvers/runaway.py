"""Rows whose state runs away: the residual stands still, and grows small only beside the state."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Runaway"]

FALLEN = 0.5
"""A row whose residual is at most this share of its largest one has come nearer to a solution."""
GROWN = 10.0
"""A row whose size is at most this many times that of its start has not run away."""


class Runaway:
    """What a row must show besides a residual within tolerance, when the tolerance is relative to its size.

    On layers z + F(z) the state grows and ||f(z) - z|| does not fall, until it is small beside ||f(z)||. So a row
    passes only if its residual has fallen to half of the largest that it has had, or if its size, max(||z||, ||f(z)||),
    is at most 10 times that of its start.

    Args:
        first: see `Frame`.

    Attributes:
        first: the same, of the first point that was taken where none was given.

    Examples:
        >>> import torch
        >>> watch = Runaway()
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> watch.runs(one, one).item(), watch.runs(one, 11 * one).item(), watch.runs(one / 2, 11 * one).item()
        (False, True, False)
    """

    def __init__(self, first: Tensor | None = None) -> None:
        self.first = first
        self._enough = None if first is None else FALLEN * first[0]
        self._most = None if first is None else GROWN * first[1]

    def runs(self, residual: Tensor, size: Tensor, counts: Tensor | None = None) -> Tensor:
        """Take one evaluation; return the rows, (B,) bool, whose residual would be within tolerance by their size only.

        Args:
            residual: ||f(z) - z||, (B,) float64.
            size: max(||z||, ||f(z)||), (B,) float64.
            counts: rows for which this is a point, (B,) bool; None is every row.
        """
        share = FALLEN * residual
        if self._enough is None or self._most is None:
            self.first, self._enough, self._most = torch.stack((residual, size)), share, GROWN * size
        else:
            share = share if counts is None else torch.where(counts, share, 0.0)
            self._enough = torch.maximum(self._enough, share)
        return (residual > self._enough) & (size > self._most)
