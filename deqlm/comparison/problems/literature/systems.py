"""Small systems of textbooks and papers: those of the 23 problems of test_nonlin that MINPACK's test does not have."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from deqlm.comparison.problems.literature.base import LiteratureProblem, system
from deqlm.comparison.problems.literature.integral import chandrasekhar
from deqlm.comparison.problems.literature.minpack import rosenbrock

__all__ = ["small_systems"]

SOURCE = "Burkardt, test_nonlin; SciML, NonlinearProblemLibrary"


def small_systems() -> Iterator[LiteratureProblem]:
    """Yield problems 1 and 15 to 23 of test_nonlin; 2 to 14 are MINPACK's.

    Reference:
        J. Burkardt, test_nonlin, and the NonlinearProblemLibrary of SciML that follows it.
    """
    ten = torch.ones(10, dtype=torch.float64, device="cpu")
    first = torch.cat((torch.tensor([-1.2], dtype=torch.float64, device="cpu"), ten[1:]))
    yield system("rosenbrock_10", f"{SOURCE}, 1 (generalised)", rosenbrock, first, ten)
    for n in (2, 3):
        exact = 0.01 * torch.eye(n, dtype=torch.float64, device="cpu")
        exact[0, 1] = 50
        yield system(
            f"square_root_{n}",
            f"{SOURCE}, {13 + n} (Hammarling)",
            matrix_root,
            torch.eye(n, dtype=torch.float64, device="cpu"),
            exact,
        )
    yield system("line_and_circle", f"{SOURCE}, 17 (Dennis, Schnabel)", line_and_circle, [1, 5], [0, 3])
    yield system("flat_root", f"{SOURCE}, 18", flat_root, [2, 2], [0, 0])
    yield system("cubic_root", f"{SOURCE}, 19", cubic_root, [3, 3], [0, 0])
    yield system("double_root", f"{SOURCE}, 20", double_root, [1], [5])
    freudenstein = system("freudenstein_roth", f"{SOURCE}, 21", freudenstein_roth, [0.5, -2], [5, 4])
    yield freudenstein
    yield freudenstein.scaled(10)
    yield freudenstein.scaled(100)
    yield system("boggs", f"{SOURCE}, 22", boggs, [1, 0], [0, 1])
    yield system("chandrasekhar_10", f"{SOURCE}, 23", lambda x: x - chandrasekhar(x, 0.9), [1] * 10)


def matrix_root(x: Tensor) -> Tensor:
    """X^2 - A for A = 10^-4 I + e_1 e_2^T, whose root is nearly not there."""
    n = math.isqrt(x.shape[1])
    X = x.reshape(-1, n, n)
    A = 1e-4 * torch.eye(n, dtype=x.dtype, device=x.device)
    A = A + torch.nn.functional.one_hot(torch.ones_like(x[0, 0], dtype=torch.int64), n * n).reshape(n, n).to(x.dtype)
    return (X @ X - A).reshape(x.shape)


def line_and_circle(x: Tensor) -> Tensor:
    """A + b = 3 and a^2 + b^2 = 9."""
    return torch.stack((x.sum(1) - 3, (x**2).sum(1) - 9), 1)


def flat_root(x: Tensor) -> Tensor:
    """b^2 g(a) and a g(b) with g(t) = (1 - exp(-t^2)) / t: of third and second order at the root."""
    a, b = x.unbind(1)
    return torch.stack((b**2 * _bump(a), a * _bump(b)), 1)


def _bump(t: Tensor) -> Tensor:
    safe = torch.where(t == 0, 1.0, t)
    return torch.where(t == 0, t, -torch.expm1(-(safe**2)) / safe)


def cubic_root(x: Tensor) -> Tensor:
    """X |x|^2: a root of third order."""
    return x * (x**2).sum(1, keepdim=True)


def double_root(x: Tensor) -> Tensor:
    """X (x - 5)^2."""
    return x * (x - 5) ** 2


def freudenstein_roth(x: Tensor) -> Tensor:
    """Two cubics with a root, and a minimum that is none."""
    a, b = x.unbind(1)
    return torch.stack((a - 13 + ((5 - b) * b - 2) * b, a - 29 + ((1 + b) * b - 14) * b), 1)


def boggs(x: Tensor) -> Tensor:
    """a^2 - b + 1 and a - cos(pi b / 2)."""
    a, b = x.unbind(1)
    return torch.stack((a**2 - b + 1, a - torch.cos(math.pi / 2 * b)), 1)
