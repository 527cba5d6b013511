"""Known answers in float64: what `deqlm_solvers.truth` offers, and bisection."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm_solvers import Map
from deqlm_solvers.truth import jacobians, polish

__all__ = ["bisect", "jacobians", "polish"]


def bisect(decreasing: Map, low: Tensor, high: Tensor, steps: int = 60) -> Tensor:
    """Return the root of a function that decreases in each unknown by itself, between ``low`` and ``high``."""
    for _ in range(steps):
        middle = (low + high) / 2
        positive = decreasing(middle) > 0
        low, high = torch.where(positive, middle, low), torch.where(positive, high, middle)
    return (low + high) / 2
