"""The square systems of Moré, Garbow and Hillstrom, with the starts of MINPACK's own test of its hybrid method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from deqlm.comparison.problems.literature.base import LiteratureProblem, system

__all__ = ["minpack_problems"]

MGH = "Moré, Garbow, Hillstrom 1981"


def minpack_problems() -> Iterator[LiteratureProblem]:
    """Yield the problems at 1, 10 and 100 times their start, as often as MINPACK's test does, and two extended ones.

    Reference:
        J. J. Moré, B. S. Garbow, K. E. Hillstrom (1981), Testing unconstrained optimization software, ACM TOMS 7, and
        algorithm 566, whose test of systems of equations has gradients for the problems that are no square system
        there: Wood, Watson, variably dimensioned.
    """
    for problem, starts in _cases():
        yield problem
        for factor in (10, 100)[: starts - 1]:
            yield problem.scaled(factor)


def _cases() -> Iterator[tuple[LiteratureProblem, int]]:
    """Yield problems and how many starts they have."""
    yield system("rosenbrock_2", f"{MGH}, 1", rosenbrock, [-1.2, 1], [1, 1]), 3
    yield system("powell_singular", f"{MGH}, 13", powell_singular, [3, -1, 0, 1], [0, 0, 0, 0]), 3
    yield system("powell_badly_scaled", f"{MGH}, 3", powell_badly_scaled, [0, 1], POWELL_ROOT), 2
    yield system("wood", f"{MGH}, 14 (gradient)", wood, [-3, -1, -3, -1], [1, 1, 1, 1]), 3
    yield system("helical_valley", f"{MGH}, 7", helical_valley, [-1, 0, 0], [1, 0, 0]), 3
    for n, starts in ((2, 1), (6, 2), (9, 2)):
        yield system(f"watson_{n}", f"{MGH}, 20 (gradient)", watson, [0] * n), starts
    for n, starts in ((2, 1), (5, 3), (6, 3), (7, 3), (8, 1), (9, 1)):
        start = torch.arange(1, n + 1, dtype=torch.float64, device="cpu") / (n + 1)
        yield system(f"chebyquad_{n}", f"{MGH}, 35", chebyquad, start, CHEBYQUAD.get(n), LEAST.get(n, 0.0)), starts
    for n, starts in ((10, 3), (30, 1), (40, 1)):
        name = f"brown_almost_linear_{n}"
        yield system(name, f"{MGH}, 27", brown_almost_linear, [0.5] * n, [1] * n), starts
    yield system("discrete_boundary_value_10", f"{MGH}, 28", discrete_boundary_value, _parabola(10)), 3
    for n in (1, 10):
        yield system(f"discrete_integral_{n}", f"{MGH}, 29", discrete_integral, _parabola(n)), 3
    yield system("trigonometric_10", f"{MGH}, 26", trigonometric, [0.1] * 10), 3
    start = 1 - _indices(10) / 10
    yield system("variably_dimensioned_10", f"{MGH}, 25 (gradient)", variably_dimensioned, start, [1] * 10), 3
    yield system("broyden_tridiagonal_10", f"{MGH}, 30", broyden_tridiagonal, [-1] * 10), 3
    yield system("broyden_banded_10", f"{MGH}, 31", broyden_banded, [-1] * 10), 3
    pairs = [-1.2, 1] * 10
    yield system("extended_rosenbrock_20", f"{MGH}, 21", extended_rosenbrock, pairs, [1] * 20), 1
    fours = [3, -1, 0, 1] * 5
    yield system("extended_powell_singular_20", f"{MGH}, 22", extended_powell_singular, fours, [0] * 20), 1


POWELL_ROOT = (1.0981593296998174e-05, 9.106146739867319)
CHEBYQUAD = {2: ((1 - 1 / math.sqrt(3)) / 2, (1 + 1 / math.sqrt(3)) / 2)}
LEAST = {8: math.sqrt(3.51687372e-3)}
"""Chebyquad of 8 has no root: its least sum of squares is known."""


def rosenbrock(x: Tensor) -> Tensor:
    """1 - x_1, and 10 (x_i - x_(i-1)^2)."""
    return torch.cat((1 - x[:, :1], 10 * (x[:, 1:] - x[:, :-1] ** 2)), 1)


def extended_rosenbrock(x: Tensor) -> Tensor:
    """The function of two unknowns on each pair."""
    return _blocks(x, 2, rosenbrock)


def powell_singular(x: Tensor) -> Tensor:
    """A root at which the Jacobian has rank 2 of 4."""
    a, b, c, d = x.unbind(1)
    return torch.stack((a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2), 1)


def extended_powell_singular(x: Tensor) -> Tensor:
    """The function of four unknowns on each four."""
    return _blocks(x, 4, powell_singular)


def powell_badly_scaled(x: Tensor) -> Tensor:
    """10^4 a b = 1 and exp(-a) + exp(-b) = 1.0001."""
    a, b = x.unbind(1)
    return torch.stack((1e4 * a * b - 1, torch.exp(-a) + torch.exp(-b) - 1.0001), 1)


def wood(x: Tensor) -> Tensor:
    """The gradient of Wood's function, its first and third component halved."""
    a, b, c, d = x.unbind(1)
    first, second = b - a**2, d - c**2
    return torch.stack(
        (
            -200 * a * first - (1 - a),
            200 * first + 20.2 * (b - 1) + 19.8 * (d - 1),
            -180 * c * second - (1 - c),
            180 * second + 20.2 * (d - 1) + 19.8 * (b - 1),
        ),
        1,
    )


def helical_valley(x: Tensor) -> Tensor:
    """A valley along a helix; the angle jumps where a = 0 and b < 0."""
    a, b, c = x.unbind(1)
    angle = torch.atan2(b, a)
    turns = angle / (2 * math.pi) + ((a < 0) & (angle < 0)).to(x.dtype)
    return torch.stack((10 * (c - 10 * turns), 10 * (torch.hypot(a, b) - 1), c), 1)


def watson(x: Tensor) -> Tensor:
    """Half the gradient of the sum of squares that fits a polynomial to z' = z^2 + 1, z(0) = 0, at t = i/29."""
    n = x.shape[1]
    t = torch.arange(1, 30, dtype=x.dtype, device=x.device)[:, None] / 29
    powers = t ** torch.arange(n, dtype=x.dtype, device=x.device)
    slopes = pad(powers[:, :-1], (1, 0)) * torch.arange(n, dtype=x.dtype, device=x.device)
    value, slope = x @ powers.mT, x @ slopes.mT
    miss = slope - value**2 - 1
    a, b = x[:, :1], x[:, 1:2]
    last = b - a**2 - 1
    ends = pad(torch.cat((a - 2 * a * last, last), 1), (0, n - 2))
    return miss @ slopes - 2 * (miss * value) @ powers + ends


def chebyquad(x: Tensor) -> Tensor:
    """Means of the shifted Chebyshev polynomials of degrees 1 to n, less their integrals over [0, 1]."""
    n = x.shape[1]
    y = 2 * x - 1
    before, now, rows = torch.ones_like(y), y, []
    for degree in range(1, n + 1):
        integral = 0.0 if degree % 2 else -1 / (degree**2 - 1)
        rows.append(now.mean(1) - integral)
        before, now = now, 2 * y * now - before
    return torch.stack(rows, 1)


def brown_almost_linear(x: Tensor) -> Tensor:
    """N - 1 linear equations, and the product of all unknowns."""
    n = x.shape[1]
    return torch.cat((x[:, :-1] + x.sum(1, keepdim=True) - (n + 1), x.prod(1, keepdim=True) - 1), 1)


def discrete_boundary_value(x: Tensor) -> Tensor:
    """U'' = (u + t + 1)^3 / 2 with u(0) = u(1) = 0, by differences."""
    t, h = _grid(x)
    return 2 * x - _before(x) - _after(x) + 0.5 * h**2 * (x + t + 1) ** 3


def discrete_integral(x: Tensor) -> Tensor:
    """The same equation as an integral, by the rectangle rule."""
    t, h = _grid(x)
    cube = (x + t + 1) ** 3
    low = (t * cube).cumsum(1)
    high = ((1 - t) * cube).sum(1, keepdim=True) - ((1 - t) * cube).cumsum(1)
    return x + 0.5 * h * ((1 - t) * low + t * high)


def trigonometric(x: Tensor) -> Tensor:
    """N - sum cos x_j + i (1 - cos x_i) - sin x_i."""
    i = _indices(x.shape[1], x)
    return x.shape[1] - x.cos().sum(1, keepdim=True) + i * (1 - x.cos()) - x.sin()


def variably_dimensioned(x: Tensor) -> Tensor:
    """x_k - 1 + k s (1 + 2 s^2) with s = sum of j (x_j - 1)."""
    i = _indices(x.shape[1], x)
    s = (i * (x - 1)).sum(1, keepdim=True)
    return x - 1 + i * s * (1 + 2 * s**2)


def broyden_tridiagonal(x: Tensor) -> Tensor:
    """(3 - 2 x_k) x_k - x_(k-1) - 2 x_(k+1) + 1."""
    return (3 - 2 * x) * x - _before(x) - 2 * _after(x) + 1


def broyden_banded(x: Tensor) -> Tensor:
    """x_k (2 + 5 x_k^2) + 1 less x_j (1 + x_j) of the five unknowns before k and the one behind it."""
    n = x.shape[1]
    k = torch.arange(n, device=x.device)
    offset = k[:, None] - k
    near = ((offset <= 5) & (offset >= -1) & (offset != 0)).to(x.dtype)
    return x * (2 + 5 * x**2) + 1 - (x * (1 + x)) @ near.mT


def _blocks(x: Tensor, size: int, F: Callable[[Tensor], Tensor]) -> Tensor:
    return F(x.reshape(-1, size)).reshape(x.shape)


def _indices(n: int, like: Tensor | None = None) -> Tensor:
    dtype, device = (torch.float64, None) if like is None else (like.dtype, like.device)
    return torch.arange(1, n + 1, dtype=dtype, device=device)


def _grid(x: Tensor) -> tuple[Tensor, float]:
    """Return the inner points of [0, 1] and their distance."""
    h = 1 / (x.shape[1] + 1)
    return h * _indices(x.shape[1], x), h


def _parabola(n: int) -> Tensor:
    """Return t (t - 1) at the inner points of [0, 1]."""
    t = _indices(n) / (n + 1)
    return t * (t - 1)


def _before(x: Tensor) -> Tensor:
    return pad(x[:, :-1], (1, 0))


def _after(x: Tensor) -> Tensor:
    return pad(x[:, 1:], (0, 1))
