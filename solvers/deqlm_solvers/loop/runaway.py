"""Rows whose state runs away: the residual stands still, and grows small only beside the state."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FALLEN", "GROWN", "Runaway", "share_left"]

FALLEN = 0.5
"""A residual that is at most this share of another one has come nearer to a solution,"""
FAR = 1000.0
"""but for rows whose size is more than this many times that of their start,"""
LEAST_SHARE = 0.1
"""of which no more than this share may be left: F of a layer z + F(z) halves by chance, far away."""
GROWN = 10.0
"""A row whose size is at most this many times that of its start has not run away."""
HIDDEN = 0.25
"""Share of eps times a size that rounding may hide of a residual there."""
NEAR = 0.5
"""Points whose sizes differ by at most this share are near each other."""
COARSE = 1e-4
"""Dtypes with a larger eps (bfloat16, float16) need so loose a tolerance that a residual halves by chance within it:"""
SURE = 0.5
"""there only this part of the share may be left of the residual with which a row came within tolerance."""


def share_left(rtol: float, eps: float) -> float:
    """Return the share of a residual that may be left of it at a solution far from the start, from 0.1 to 0.5.

    Where the tolerance is loose, or near what the dtype resolves, the residual of a solution need not fall to a tenth.

    Args:
        rtol: relative tolerance, >= 0.
        eps: of the dtype that f computes in.

    Examples:
        >>> share_left(1e-4, 1e-7), share_left(1e-2, 1e-7), share_left(4e-7, 1e-7)
        (0.1, 0.5, 0.5)
    """
    if rtol == 0:
        return FALLEN
    return min(FALLEN, max(LEAST_SHARE, 100 * rtol, 4 * eps / rtol))


class Runaway:
    """What a row must show besides a residual within tolerance, when the tolerance is relative to its size.

    On layers z + F(z) the state grows and ||f(z) - z|| does not fall, until it is small beside ||f(z)||. So a point
    passes only if its size, max(||z||, ||f(z)||), is at most 10 times that of the row's start, or its residual at most
    half of the row's first one (a `share_left` where the size is more than 1000 times that of the start), or, for a row
    that began where everything is small, as much (half as much in bfloat16 and float16) of what it was when the row
    first came within tolerance around here: where there is a solution the residual goes on falling. A solver
    that leaps far away and comes back has had large residuals, so half of the largest would tell nothing. Where the
    state has grown so far that z + F(z) is z but for rounding, the residual tells nothing either: it counts as what
    rounding may hide of it.

    Args:
        first: see `Layout`.
        share: what `share_left` says.
        eps: of the dtype that f computes in.

    Attributes:
        first: the same, of the first point that was taken where none was given.

    Examples:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> watch = Runaway(torch.stack((one, one)))
        >>> [watch.runs(one < 2, r * one, s * one).item() for r, s in ((1, 10), (1, 11), (1, 12), (0.5, 12))]
        [False, True, True, False]
    """

    def __init__(self, first: Tensor | None = None, share: float = FALLEN, eps: float = 0.0) -> None:
        self.first = first
        self.share = share
        self.hidden = HIDDEN * eps
        self.sure = SURE if eps > COARSE else 1.0
        self._bounds: Tensor | None = None
        self._mark: Tensor | None = None

    def runs(self, within: Tensor, residual: Tensor, size: Tensor) -> Tensor:
        """Take one evaluation; return the rows, (B,) bool, that are within tolerance by their size only.

        Args:
            within: rows whose residual is within tolerance at a point of theirs, (B,) bool.
            residual: ||f(z) - z||, (B,) float64.
            size: max(||z||, ||f(z)||), (B,) float64.
        """
        now = torch.stack((torch.maximum(residual, self.hidden * size), size))
        if self.first is None or self._bounds is None or self._mark is None:
            self.first = torch.stack((residual, size)) if self.first is None else self.first
            self._bounds = torch.stack((GROWN * self.first[1], FAR * self.first[1]))
            self._mark = torch.zeros_like(now)
        grown, far = size > self._bounds
        share = torch.where(far, self.share, FALLEN)
        doubtful = within & grown & (now[0] > share * self.first[0])
        before, near = self._mark
        fresh = doubtful & ((size - near).abs() > NEAR * size)
        self._mark = torch.where(fresh, now, self._mark)
        before = before if self.sure == 1 else self.sure * before
        return fresh | (doubtful & (now[0] > share * before))
