"""Sick and healthy maps drawn by seed, with the code that a diagnosis should give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deqlm.diagnostics import Cause

KINDS = (
    Cause.SLOW_CONTRACTION,
    Cause.COMPLEX_PAIR,
    Cause.TWO_CYCLE,
    Cause.NON_NORMAL,
    Cause.DIVERGENCE,
    Cause.NONFINITE,
    Cause.STOCHASTIC,
    Cause.IN_PLACE,
)
SOLVABLE = frozenset(KINDS[:5])
SIZES = (4, 12, 40, 160, 320)
DTYPES = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Drawn:
    """A map with what is known of it by construction."""

    f: Callable[[Tensor], Tensor]
    z0: Tensor
    kind: Cause
    radius: float
    matrix: Tensor
    label: str


def draw(seed: int) -> Drawn:
    """Draw a map: the kind goes round by seed; size, radius, dtype, form and matrix are random."""
    gen = torch.Generator().manual_seed(7919 * seed + 13)
    kind = KINDS[seed % len(KINDS)]

    def pick(options):
        return options[int(torch.randint(len(options), (), generator=gen))]

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=gen, dtype=torch.float64))

    n, dtype, rows, nonlinear = pick(SIZES), pick(DTYPES), pick((1, 3)), pick((False, True))
    matrix, radius = _matrix(kind, n, gen, between)
    b = torch.randn(rows, n, generator=gen, dtype=torch.float64)
    A = matrix.to(dtype)
    f = _form(kind, A, b.to(dtype), nonlinear, gen, between)
    label = f"{seed}: {kind} N={n} B={rows} {str(dtype)[6:]} rho={radius:.3f}{' bent' if nonlinear else ''}"
    return Drawn(f, torch.zeros(rows, n, dtype=dtype), kind, radius, A, label)


def _matrix(kind: Cause, n: int, gen: torch.Generator, between) -> tuple[Tensor, float]:
    """Return a matrix whose largest eigenvalues are of the kind, the others at most .6 of them."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64)

    basis, _ = torch.linalg.qr(normal(n, n))
    rest = (torch.rand(n, generator=gen, dtype=torch.float64) * 2 - 1) * 0.6
    D = torch.diag(rest)
    radius = between(0.3, 0.9)
    if kind is Cause.SLOW_CONTRACTION:
        radius = between(0.96, 0.999)
        D[0, 0] = radius
    elif kind is Cause.COMPLEX_PAIR:
        radius, angle = between(0.96, 1.15), between(0.5, 2.6)
        if radius > 0.98 and radius * math.cos(angle) > 0.9:
            radius = 0.97
        c, s = radius * math.cos(angle), radius * math.sin(angle)
        D[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    elif kind is Cause.TWO_CYCLE:
        radius = between(0.96, 1.6)
        D[0, 0] = -radius
    elif kind is Cause.NON_NORMAL:
        radius = between(0.9, 0.95)
        D[:3, :3] = torch.diag(radius - torch.tensor([0.0, 0.07, 0.15], dtype=torch.float64))
        D[0, 1], D[1, 2], D[0, 2] = between(4, 9), between(4, 9), between(-9, 9)
    elif kind is Cause.DIVERGENCE:
        radius = between(1.05, 2.0)
        D[0, 0] = radius
    return basis @ D @ basis.mT, radius


def _form(kind: Cause, A: Tensor, b: Tensor, nonlinear: bool, gen: torch.Generator, between):
    """Return the map; a bent one bends far outside the solution, so its Jacobian there is nearly the matrix.

    What expands is bent outwards (sinh), lest it settle elsewhere; the rest saturates (tanh).
    """
    solution = torch.linalg.solve(torch.eye(len(A), dtype=torch.float64) - A.double(), b.double().T).T
    size = float(solution.abs().max()) * (1e4 if kind is Cause.NON_NORMAL else 30)
    outwards = kind is Cause.DIVERGENCE

    def plain(z: Tensor) -> Tensor:
        return z @ A.T + b

    def bent(z: Tensor) -> Tensor:
        y = (z @ A.T + b) / size
        return size * (torch.sinh(y) if outwards else torch.tanh(y))

    f = bent if nonlinear else plain
    if kind is Cause.NONFINITE:
        if nonlinear:
            return lambda z: f(z) + torch.sqrt(0.5 - (z * z).mean(1, keepdim=True))
        return lambda z: f(z) * torch.where(z.abs().amax(1, keepdim=True) > 1e-3, torch.nan, 1.0)
    if kind is Cause.STOCHASTIC:
        noise, own = between(0.02, 0.5), torch.Generator().manual_seed(0)
        if nonlinear:
            return lambda z: f(z) * (torch.rand(z.shape, dtype=z.dtype, generator=own) > noise) / (1 - noise)
        return lambda z: f(z) + noise * torch.randn(z.shape, dtype=z.dtype, generator=own)
    if kind is Cause.IN_PLACE:
        if nonlinear:
            return lambda z: torch.tanh_(z.mul_(0.5)) @ A.T + b
        return lambda z: z.mul_(0.5).add_(b)
    return f
