"""Bratu's problem: an exponential source between cold walls, with a fold beyond which there is no solution."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from deqlm.comparison.problems.literature.base import LiteratureProblem, map_of, system

__all__ = ["boundary_values"]

SOURCE = "Bratu 1914"


def boundary_values() -> Iterator[LiteratureProblem]:
    """Yield Bratu's problem on a line and on a square, as residuals of two scales and as Picard's iteration.

    The folds lie at 3.5138 on the line and at 6.808 on the square, a little above on grids.

    Reference:
        G. Bratu (1914), Sur les équations intégrales non linéaires, Bull. Soc. Math. France 42.
    """
    line, square = [0] * 32, [0] * 64
    for strength in (1.0, 3.5):
        name = f"bratu_line_{strength:g}".replace(".", "")
        yield system(name, SOURCE, lambda u, s=strength: bratu(u, 1, s), line)
        yield map_of(f"{name}_picard", SOURCE, lambda u, s=strength: picard(u, 1, s), line)
    yield system("bratu_line_1_unscaled", SOURCE, lambda u: 33**2 * bratu(u, 1, 1.0), line)
    for strength in (1.0, 6.0):
        name = f"bratu_square_{strength:g}"
        yield system(name, SOURCE, lambda u, s=strength: bratu(u, 2, s), square)
        yield map_of(f"{name}_picard", SOURCE, lambda u, s=strength: picard(u, 2, s), square)


def bratu(u: Tensor, dimension: int, strength: float) -> Tensor:
    """Return h^2 (-Laplace u - strength exp(u)) by central differences."""
    side = _side(u, dimension)
    grid = u.reshape(-1, *[side] * dimension)
    flow = 2 * dimension * grid
    for d in range(1, dimension + 1):
        flow = flow - _neighbours(grid, d)
    return flow.reshape(u.shape) - strength / (side + 1) ** 2 * u.exp()


def picard(u: Tensor, dimension: int, strength: float) -> Tensor:
    """Return the solution v of -Laplace v = strength exp(u), by the sines in which the differences are diagonal."""
    side = _side(u, dimension)
    k = torch.arange(1, side + 1, dtype=u.dtype, device=u.device)
    waves = torch.sin(torch.pi / (side + 1) * k[:, None] * k) * (2 / (side + 1)) ** 0.5
    rates = 4 * (side + 1) ** 2 * torch.sin(torch.pi / 2 / (side + 1) * k) ** 2
    heat = strength * u.exp()
    if dimension == 1:
        return (heat @ waves / rates) @ waves
    spectrum = waves @ heat.reshape(-1, side, side) @ waves
    return (waves @ (spectrum / (rates[:, None] + rates)) @ waves).reshape(u.shape)


def _side(u: Tensor, dimension: int) -> int:
    return round(u.shape[1] ** (1 / dimension))


def _neighbours(grid: Tensor, d: int) -> Tensor:
    """Return the sum of both neighbours along dimension ``d``, zero beyond the walls."""
    n = grid.shape[d]
    behind = (0, 0) * (grid.ndim - 1 - d)
    return pad(grid.narrow(d, 0, n - 1), (*behind, 1, 0)) + pad(grid.narrow(d, 1, n - 1), (*behind, 0, 1))
