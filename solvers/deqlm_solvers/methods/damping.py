"""How far a row steps along its residual, and how it shortens a step that was refused."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FLOOR", "Damping"]

FLOOR = 1 / 16
"""Restarts halve the damping down to this."""
LEAST = 2.0**-20
"""A restart step that is refused itself is quartered below the floor, down to this, while that lowers the residual."""
FALLS = 0.75
"""It does so when the residual is below this factor times that of the last refused restart, or not finite."""
TOO_LONG = 8.0
"""The first pair shortens beta to its own scale where that is at most 1 / 8 of it; common maps keep theirs."""
SHORTEST = 2.0**-60
"""Smallest scale that is taken from a pair."""


class Damping:
    """Columns (B, 1): beta of every row, and what a refused step leaves of it.

    Args:
        initial: beta of the first step.
        z: the start, inner dtype.

    Attributes:
        beta: that of the pending step and of the kept pairs, inner dtype.
        limit: beta of a row whose pairs do not ask for less; halved by every restart down to `FLOOR`.
        restarted: rows whose pending step leads from the best point along its residual, without history, bool.
        above: `FALLS` times the residual to which the last such step has led, if it was refused and finite, else NaN.
        spent: rows whose pending step repeats a refused one, bool: nothing is left to try.
    """

    def __init__(self, initial: float, z: Tensor) -> None:
        self.initial = initial
        self.beta = self.limit = torch.full((z.shape[0], 1), initial, dtype=z.dtype, device=z.device)
        self.restarted = torch.ones_like(self.beta, dtype=torch.bool)
        self.spent = torch.zeros_like(self.restarted)
        self.above = torch.full_like(self.beta, torch.nan, dtype=torch.float64)
        self.pending = self.beta

    def fit(self, first: Tensor, scale: Tensor | None) -> None:
        """Choose beta where a row has its first pair: the scale of that pair, or the limit.

        Args:
            first: those rows, (B, 1) bool.
            scale: ||s|| / ||y|| of the newest pair, (B, 1) float64, or None where the method goes by the limit alone.
        """
        self.pending = torch.where(self.restarted, self.beta, self.limit)
        beta = self.limit
        if scale is not None:
            beta = torch.where(TOO_LONG * scale <= beta, scale.clamp_min(SHORTEST).to(beta.dtype), beta)
        self.beta = torch.where(first, beta, self.beta)

    def renew(self, rows: Tensor) -> None:
        """Give ``rows`` (B, 1), which are about to take plain steps, the beta of the first step."""
        self.beta = self.beta.masked_fill(rows, self.initial)

    def settle(self, norm: Tensor, refused: Tensor, held: Tensor | None = None) -> None:
        """Take which rows restart; ``held`` rows, whose step a line search shortens, keep what they had.

        norm: ||r||, (B, 1) float64; refused, held: (B, 1) bool.
        """
        pending, again = self.pending, refused & self.restarted
        deeper = again & ~(norm >= self.above)
        below = torch.where(deeper, (0.25 * pending).clamp_min(LEAST), pending)
        lower = torch.where(pending > FLOOR, (0.5 * pending).clamp_min(FLOOR), torch.minimum(below, pending))
        now = {
            "spent": again & (lower == pending),
            "above": torch.where(again & (norm < torch.inf), FALLS * norm, torch.nan),
            "restarted": refused,
            "limit": torch.where(refused, torch.minimum(self.limit, lower.clamp_min(FLOOR)), self.limit),
            "beta": torch.where(refused, lower, self.beta),
        }
        for name, value in now.items():
            setattr(self, name, value if held is None else torch.where(held, getattr(self, name), value))
