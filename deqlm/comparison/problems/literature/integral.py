"""Chandrasekhar's H-equation of radiative transfer, whose Jacobian becomes singular as c goes to 1."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from deqlm.comparison.problems.literature.base import LiteratureProblem, map_of

__all__ = ["chandrasekhar", "h_equations"]


def h_equations() -> Iterator[LiteratureProblem]:
    """Yield the equation for albedos from harmless to critical, on 50 points.

    Reference:
        S. Chandrasekhar (1960), Radiative transfer; C. T. Kelley (1995), Iterative methods for linear and nonlinear
        equations, section 5.6, the midpoint rule of which is used.
    """
    for c in (0.5, 0.9, 0.99, 0.9999, 1.0):
        name = f"h_equation_c{c:g}".replace(".", "")
        yield map_of(name, "Kelley 1995, 5.6", lambda z, c=c: chandrasekhar(z, c), [1] * 50)


def chandrasekhar(x: Tensor, c: float) -> Tensor:
    """Return 1 / (1 - c/(2n) sum_j mu_i x_j / (mu_i + mu_j)) for the midpoints mu of n intervals of [0, 1]."""
    n = x.shape[1]
    mu = (torch.arange(n, dtype=x.dtype, device=x.device) + 0.5) / n
    kernel = mu[:, None] / (mu[:, None] + mu)
    return 1 / (1 - c / (2 * n) * x @ kernel.mT)
