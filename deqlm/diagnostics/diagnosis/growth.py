"""Whether a state runs away: it grows, and its residual does not fall."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqlm_solvers import Map, Solution
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.loop.runaway import FALLEN, GROWN

__all__ = ["Skip", "Start", "probe_skip"]

STRAIGHT, BENT = 0.7, 1e-3
"""Furthest from 1 that the mean diagonal of J of a residual layer may be, and least that J differs from I."""

DIRECTIONS = 4


@dataclass(frozen=True)
class Start:
    """What later points of a solve are measured against.

    Attributes:
        residual: ||f(z0) - z0||, (B,) float64.
        scale: max(||z0||, ||f(z0)||), likewise.
    """

    residual: Tensor
    scale: Tensor

    @classmethod
    def of(cls, z0: Tensor, fz: Tensor) -> Start:
        """Return the start z0 (B, N) with its value."""
        return cls(row_norms(fz - z0), torch.maximum(row_norms(z0), row_norms(fz)))

    def growth(self, z: Tensor, fz: Tensor) -> Tensor:
        """Return the scale of a later point in units of the first, (B,) float64."""
        scale = torch.maximum(row_norms(z), row_norms(fz))
        return (scale / self.scale).nan_to_num(0.0, torch.inf)

    def ran_away(self, sol: Solution, fz: Tensor) -> Tensor:
        """Return rows of a flat solution whose point grew without getting any better, (B,) bool.

        Solvers that can tell have told; for the others the point is held against the start and the trace.
        """
        if sol.runaway is not None:
            return sol.runaway.flatten()
        largest = torch.ones_like(self.residual)
        if sol.trace is not None and len(sol.trace):
            trace = sol.trace.reshape(len(sol.trace), -1).nan_to_num(0.0, 0.0)
            largest = (trace.amax(0) / trace[0]).nan_to_num(1.0, 1.0).clamp_min(1.0)
        return self.no_better(sol.z, fz, largest)

    def no_better(self, z: Tensor, fz: Tensor, largest: Tensor | float = 1.0) -> Tensor:
        """Return rows whose point grew and has more than half of a residual, ``largest`` first ones, (B,) bool.

        Of a state that has grown f may add what rounding loses: a residual below that has not fallen.
        """
        lost = torch.finfo(z.dtype).eps * torch.maximum(row_norms(z), row_norms(fz))
        left = torch.maximum(row_norms(fz - z), lost)
        return (left > FALLEN * largest * self.residual) & (self.growth(z, fz) > GROWN)


@dataclass(frozen=True)
class Skip:
    """How much of its argument f hands on, at the start and one evaluation later.

    Attributes:
        diagonal: mean diagonal of the Jacobian, about 1 for z + F(z).
        bend: ||(J - I) v|| / ||v|| for random v; 0 for a translation, z + constant.
    """

    diagonal: tuple[float, ...]
    bend: tuple[float, ...]

    @property
    def residual_layer(self) -> bool:
        """F is z + F(z) with an F that is no constant, at every point looked at."""
        straight = all(abs(value - 1) <= STRAIGHT for value in self.diagonal)
        return straight and all(value >= BENT for value in self.bend)


def probe_skip(f: Map, points: list[Tensor], draw: torch.Generator) -> Skip:
    """Look at the diagonal of the Jacobian by differences along random signs.

    Args:
        f: map on rows.
        points: (B, N) each, finite and with finite values.
        draw: generator on the CPU.
    """
    diagonal, bend = zip(*(_look(f, z, draw) for z in points), strict=True)
    return Skip(diagonal, bend)


def _look(f: Map, z: Tensor, draw: torch.Generator) -> tuple[float, float]:
    size = torch.maximum(row_norms(z), row_norms(f(z))) / z.shape[1] ** 0.5
    h = torch.finfo(z.dtype).eps ** (1 / 3) * torch.where(size > 0, size, 1.0)[:, None]
    overlap, apart = 0.0, 0.0
    for _ in range(DIRECTIONS):
        sign = (torch.randint(0, 2, z.shape, generator=draw, device=draw.device) * 2 - 1).to(z.device, torch.float64)
        above, below = (z.double() + h * sign).to(z.dtype), (z.double() - h * sign).to(z.dtype)
        step = (above.double() - below.double()) / (2 * h)
        product = (f(above).double() - f(below).double()) / (2 * h)
        overlap += float((product * step).mean()) / DIRECTIONS
        apart += float((product - step).square().mean().sqrt()) / DIRECTIONS
    return overlap, apart
