"""Large systems with which derivative-free spectral methods were tested, at moderate size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from deqlm.comparison.problems.literature.base import LiteratureProblem, system
from deqlm.comparison.problems.literature.integral import chandrasekhar

__all__ = ["spectral_problems"]

SOURCE = "La Cruz, Martínez, Raydan 2006"


def spectral_problems() -> Iterator[LiteratureProblem]:
    """Yield the functions that scipy's test of DF-SANE has, and five more of the same papers.

    Reference:
        W. La Cruz, M. Raydan (2003), Optim. Methods Softw. 18; W. La Cruz, J. M. Martínez, M. Raydan (2006), Math.
        Comp. 75; M. G. Gasparo (2000), Optim. Methods Softw. 13, for the diagonal function.
    """
    ones = torch.ones(50, dtype=torch.float64, device="cpu")
    i = torch.arange(1, 51, dtype=torch.float64, device="cpu")
    yield system("exponential_1", f"{SOURCE}, 1", exponential_1, ones * 50 / 49, ones)
    yield system("exponential_2", f"{SOURCE}, 2", exponential_2, ones / 50**2, 0 * ones)
    yield system("diagonal", f"{SOURCE}, 4", diagonal, [-1, 0.5, -1] * 5)
    yield system("chandrasekhar_50", f"{SOURCE}, 6", lambda x: x - chandrasekhar(x, 0.9), ones)
    for n in (9, 48):
        yield system(f"augmented_powell_{n}", f"{SOURCE}, 7", augmented_powell, [1e-3, 18, 1] * (n // 3))
    yield system("singular_function", f"{SOURCE}, 9", singular, ones, 0 * ones)
    yield system("logarithm", f"{SOURCE}, 10", lambda x: torch.log1p(x) - x / x.shape[1], ones, 0 * ones)
    yield system("trigexp", f"{SOURCE}, 12", trigexp, 0 * ones, ones)
    yield system("strictly_convex_1", f"{SOURCE}, 16", torch.expm1, i / 50, 0 * ones)
    yield system("strictly_convex_2", f"{SOURCE}, 17", strictly_convex_2, ones, 0 * ones)


def exponential_1(x: Tensor) -> Tensor:
    """exp(x_1 - 1) - 1 and i (exp(x_i - 1) - x_i): double roots but for the first unknown."""
    i = torch.arange(2, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    y = x - 1
    return torch.cat((torch.expm1(y[:, :1]), i * (torch.expm1(y[:, 1:]) - y[:, 1:])), 1)


def exponential_2(x: Tensor) -> Tensor:
    """exp(x_1) - 1 and i/10 (exp(x_i) + x_(i-1) - 1)."""
    i = torch.arange(2, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    grown = torch.expm1(x)
    return torch.cat((grown[:, :1], i / 10 * (grown[:, 1:] + x[:, :-1])), 1)


def diagonal(x: Tensor) -> Tensor:
    """Cubics in threes, mixed by a nearly orthogonal matrix."""
    a, b, c = x.reshape(x.shape[0], -1, 3).unbind(2)
    threes = (
        0.6 * a + ((1.6 * b - 7.2) * b + 9.6) * b - 4.8,
        0.48 * a - ((0.72 * b - 3.24) * b + 4.32) * b - c + 0.2 * c**3 + 2.16,
        1.25 * c - 0.25 * c**3,
    )
    return torch.stack(threes, 2).reshape(x.shape)


def augmented_powell(x: Tensor) -> Tensor:
    """Powell's badly scaled function with its first equation in one unknown, and a piecewise cubic, in threes."""
    a, b, c = x.reshape(x.shape[0], -1, 3).unbind(2)
    inner = (((-592 * c + 888) * c + 4551) * c - 1924) / 1998
    outer = 0.5 * c + torch.where(c < 0, -2.0, 2.0)
    third = torch.where((c > -1) & (c < 2), inner, outer)
    return torch.stack((1e4 * b**2 - 1, torch.exp(-a) + torch.exp(-b) - 1.0001, third), 2).reshape(x.shape)


def singular(x: Tensor) -> Tensor:
    """A root at which the Jacobian is zero."""
    i = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    signs = torch.ones_like(i)
    cubes = i * x**3 / 3
    squares = x**2 / 2
    signs = -signs * (i > 1)
    return cubes + signs * squares + pad(squares[:, 1:], (0, 1))


def trigexp(x: Tensor) -> Tensor:
    """A tridiagonal system of sines and exponentials."""
    here, after = x[:, :-1], x[:, 1:]
    waves = torch.sin(here - after) * torch.sin(here + after)
    decays = -here * torch.exp(here - after)
    first = 3 * x[:, :1] ** 3 + 2 * x[:, 1:2] - 5 + waves[:, :1]
    middle = decays[:, :-1] + x[:, 1:-1] * (4 + 3 * x[:, 1:-1] ** 2) + 2 * x[:, 2:] + waves[:, 1:] - 8
    return torch.cat((first, middle, decays[:, -1:] + 4 * x[:, -1:] - 3), 1)


def strictly_convex_2(x: Tensor) -> Tensor:
    """i/10 (exp(x_i) - 1)."""
    i = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    return i / 10 * torch.expm1(x)
