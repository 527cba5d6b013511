"""The systems with which scipy tests and explains its root finders."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from deqlm.comparison.problems.literature.base import LiteratureProblem, system
from deqlm.comparison.problems.literature.minpack import POWELL_ROOT, powell_badly_scaled

__all__ = ["scipy_problems"]


def scipy_problems() -> Iterator[LiteratureProblem]:
    """Yield systems of scipy's tests of `root` and of its documentation, at their starts."""
    yield system("weak_cubic", "scipy, test_nonlin F", weak_cubic, [1] * 5, [0] * 5)
    yield system("second_difference", "scipy, test_nonlin F3", second_difference, [1, 2, 3], [-2.5, -4, -3.5])
    yield system("powell_badly_scaled_negative", "scipy, test_nonlin F4", powell_badly_scaled, [-1, -2], POWELL_ROOT)
    yield system("pressure_network", "scipy, test_minpack", pressure_network, [2, 0, 2, 0], [1] * 4)
    yield system("preconditioned_pair", "scipy, test_nonlin F6", preconditioned_pair, [-0.5, 1.4])
    yield system("quadratic_pair", "scipy, test__root", quadratic_pair, [0, 0])
    yield system("cubic_pair", "scipy, root", cubic_pair, [0, 0])
    yield system("cosine_pair", "scipy, fsolve", cosine_pair, [1, 1])
    yield system("reversed_cosines", "scipy, broyden1", reversed_cosines, [1] * 4)
    yield system("tutorial_cosine", "scipy, tutorial", lambda x: x + 2 * x.cos(), [0.3])
    yield system("integro_differential_8", "scipy, tutorial", integro_differential, [0] * 64)


def weak_cubic(x: Tensor) -> Tensor:
    """-D x - 0.01 |x|^2 x with five rates D."""
    rates = torch.tensor([3, 2, 1.5, 1, 0.5], dtype=x.dtype, device=x.device)
    return -x * (rates + 0.01 * (x**2).sum(1, keepdim=True))


def second_difference(x: Tensor) -> Tensor:
    """x_(i-1) - 2 x_i + x_(i+1) = i."""
    i = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    return pad(x[:, :-1], (1, 0)) - 2 * x + pad(x[:, 1:], (0, 1)) - i


def pressure_network(x: Tensor) -> Tensor:
    """Equal pressure drops x^2 / 2 in four pipes, whose flows add up to 4; the Jacobian is singular at the start."""
    drop = 0.5 * x**2
    return torch.cat((drop[:, 1:] - drop[:, :1], x.sum(1, keepdim=True) - 4), 1)


def preconditioned_pair(x: Tensor) -> Tensor:
    """A polynomial and a sine, times minus the inverse of the Jacobian at the start."""
    a, b = x.unbind(1)
    v = torch.stack(((a + 3) * (b**5 - 7) + 18, torch.sin(b * torch.exp(a) - 1)), 1)
    J = torch.tensor([[-4.256, 14.7], [0.8394989, 0.59964207]], dtype=torch.float64, device=x.device)
    return -v @ torch.linalg.inv(J).mT.to(x.dtype)


def quadratic_pair(x: Tensor) -> Tensor:
    """3 a - b^2 / 4 + 10 and a^2 / 10 + 5 b - 2."""
    a, b = x.unbind(1)
    return torch.stack((3 * a - 0.25 * b**2 + 10, 0.1 * a**2 + 5 * b - 2), 1)


def cubic_pair(x: Tensor) -> Tensor:
    """A + (a - b)^3 / 2 - 1 and b - (a - b)^3 / 2."""
    a, b = x.unbind(1)
    cube = 0.5 * (a - b) ** 3
    return torch.stack((a + cube - 1, b - cube), 1)


def cosine_pair(x: Tensor) -> Tensor:
    """A cos b = 4 and a b = b + 5."""
    a, b = x.unbind(1)
    return torch.stack((a * b.cos() - 4, a * b - b - 5), 1)


def reversed_cosines(x: Tensor) -> Tensor:
    """Cos x_i + x_(n+1-i) = i."""
    i = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    return x.cos() + x.flip(1) - i


def integro_differential(x: Tensor) -> Tensor:
    """Laplace P = 10 (mean of cosh P)^2 on the unit square, P = 1 on its upper side and 0 on the others."""
    n = round(x.shape[1] ** 0.5)
    P = x.reshape(-1, n, n)
    upper = torch.ones_like(P[:, :1])
    tall = torch.cat((upper, P, 0 * upper), 1)
    second = tall[:, :-2] - 2 * P + tall[:, 2:] + pad(P[:, :, :-1], (1, 0)) - 2 * P + pad(P[:, :, 1:], (0, 1))
    mean = P.cosh().mean((1, 2), keepdim=True)
    return (second * (n + 1) ** 2 - 10 * mean**2).reshape(x.shape)
