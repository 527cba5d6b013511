"""The map that a solve with a token mask solves: tokens that do not count stay where they start."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm_solvers import Layout, Map, Stop
from deqlm_solvers.loop.criterion import Criterion

__all__ = ["masked_map", "masked_unknowns"]


def masked_unknowns(stop: Stop, layout: Layout, z0: Tensor) -> Tensor | None:
    """Return which unknowns belong to tokens that do not count, (B, N) bool; None where all count.

    Args:
        stop: of the solve, which says where the tokens are.
        layout: with the mask.
        z0: the start, (B, N).
    """
    return Criterion(stop, layout, z0).masked if layout.token_mask is not None and stop.per == "token" else None


def masked_map(f: Map, masked: Tensor | None, z0: Tensor) -> Map:
    """Return ``f`` (B, N) with ``masked`` unknowns held at ``z0``, at zero where it is NaN, for whoever reads them."""
    if masked is None:
        return f
    at = torch.where(masked & z0.isnan(), 0.0, z0.detach())

    def hold(z: Tensor) -> Tensor:
        return torch.where(masked, at, f(torch.where(masked, at, z)))

    return hold
