"""Classic systems F(z) = 0 as maps z - F(z) or z + F(z), as test data.

Reference: J. J. More, B. S. Garbow, K. E. Hillstrom (1981), Testing unconstrained optimization software, ACM Trans.
Math. Softw. 7; the generalised Rosenbrock system is the first of the collection in SciML's NonlinearProblemLibrary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

F64 = torch.float64


@dataclass(frozen=True, eq=False)
class System:
    """F (B, N) -> (B, N), a usual start (1, N) and, where it is one number, each unknown of its solution."""

    name: str
    F: Callable[[Tensor], Tensor]
    z0: Tensor

    def map(self, z: Tensor) -> Tensor:
        return z - self.F(z)

    def mirrored(self, z: Tensor) -> Tensor:
        return z + self.F(z)


def generalised_rosenbrock(size: int) -> System:
    z0 = torch.ones(1, size, dtype=F64)
    z0[0, 0] = -1.2
    return System(
        f"rosenbrock_{size}", lambda x: torch.cat((1 - x[:, :1], 10 * (x[:, 1:] - x[:, :-1].square())), 1), z0
    )


def _singular(x: Tensor) -> Tensor:
    a, b, c, d = x.unbind(1)
    return torch.stack((a + 10 * b, 5**0.5 * (c - d), (b - 2 * c).square(), 10**0.5 * (a - d).square()), 1)


def _badly_scaled(x: Tensor) -> Tensor:
    a, b = x.unbind(1)
    return torch.stack((1e4 * a * b - 1, torch.exp(-a) + torch.exp(-b) - 1.0001), 1)


def _wood(x: Tensor) -> Tensor:
    a, b, c, d = x.unbind(1)
    left, right = b - a * a, d - c * c
    first = -200 * a * left - (1 - a)
    second = 200 * left + 20.2 * (b - 1) + 19.8 * (d - 1)
    third = -180 * c * right - (1 - c)
    return torch.stack((first, second, third, 180 * right + 20.2 * (d - 1) + 19.8 * (b - 1)), 1)


def _almost_linear(x: Tensor) -> Tensor:
    return torch.cat((x[:, :-1] + x.sum(1, keepdim=True) - (x.shape[1] + 1), x.prod(1, keepdim=True) - 1), 1)


def _variably_dimensioned(x: Tensor) -> Tensor:
    i = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
    total = (i * (x - 1)).sum(1, keepdim=True)
    return x - 1 + i * total * (1 + 2 * total.square())


def _trigonometric(x: Tensor) -> Tensor:
    i = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
    return x.shape[1] - x.cos().sum(1, keepdim=True) + i * (1 - x.cos()) - x.sin()


def _chebyquad(x: Tensor) -> Tensor:
    before, now, means = torch.ones_like(x), 2 * x - 1, []
    for i in range(1, x.shape[1] + 1):
        means.append(now.mean(1) + (1 / (i * i - 1) if i % 2 == 0 else 0))
        before, now = now, 2 * (2 * x - 1) * now - before
    return torch.stack(means, 1)


def _row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=F64)


CLASSICS = [
    generalised_rosenbrock(2),
    System("powell_singular", _singular, _row(3, -1, 0, 1)),
    System("powell_badly_scaled", _badly_scaled, _row(0, 1)),
    System("wood", _wood, _row(-3, -1, -3, -1)),
    System("brown_almost_linear_30", _almost_linear, torch.full((1, 30), 0.5, dtype=F64)),
    System("variably_dimensioned", _variably_dimensioned, 1 - torch.arange(1, 11, dtype=F64)[None] / 10),
    System("trigonometric", _trigonometric, torch.full((1, 10), 0.1, dtype=F64)),
    System("chebyquad_6", _chebyquad, torch.arange(1, 7, dtype=F64)[None] / 7),
    System("cubic_pit", lambda x: x**3 - 2 * x + 2, _row(0)),
]
