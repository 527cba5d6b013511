"""Fixed-point equations that every course has."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from deqlm.comparison.problems.literature.base import LiteratureProblem, map_of

__all__ = ["classic_problems"]


def classic_problems() -> Iterator[LiteratureProblem]:
    """Yield equations of one to a few dozen unknowns, with what makes each awkward."""
    yield map_of("dottie", "z = cos z", torch.cos, [0], [0.7390851332151607])
    yield map_of("lambert", "z = exp(-z)", lambda z: torch.exp(-z), [0], [0.5671432904097838])
    yield map_of("heron", "z = (z + 2/z) / 2", lambda z: (z + 2 / z) / 2, [100], [math.sqrt(2)])
    yield map_of("golden_ratio", "z = 1 + 1/z", lambda z: 1 + 1 / z, [1], [(1 + math.sqrt(5)) / 2])
    yield map_of("logistic_2_cycle", "May 1976, r = 3.3", lambda z: 3.3 * z * (1 - z), [0.5], [1 - 1 / 3.3])
    yield map_of("logistic_chaos", "May 1976, r = 3.9", lambda z: 3.9 * z * (1 - z), [0.5], [1 - 1 / 3.9])
    for e in (0.5, 0.99):
        name = f"kepler_{e:g}".replace("0.", "0")
        yield map_of(name, "Kepler 1609", lambda z, e=e: kepler(z, e), _mean_anomalies())
    yield map_of("colebrook", "Colebrook 1939", colebrook, [1] * 9)
    yield map_of("mean_field_cold", "Weiss 1907, T = 1/2", lambda z: torch.tanh(2 * z), [0.1])
    many = torch.linspace(-1, 1, 20, dtype=torch.float64, device="cpu")
    yield map_of("mean_field_warm", "Weiss 1907, T = 1/1.2", lambda z: torch.tanh(1.2 * z), many)
    yield map_of("mean_field_critical", "Weiss 1907, T = 1", torch.tanh, [0.5], [0])
    yield map_of("jacobi_line", "Jacobi 1845", jacobi_line, [0] * 32, _parabola(32))
    yield map_of(
        "newton_schulz", "Schulz 1933", newton_schulz, 0.1 * torch.eye(4, dtype=torch.float64, device="cpu"), _inverse()
    )


def kepler(z: Tensor, e: float) -> Tensor:
    """M + e sin z."""
    return _mean_anomalies().to(z) + e * torch.sin(z)


def _mean_anomalies() -> Tensor:
    return torch.linspace(0.05, 3.1, 20, dtype=torch.float64, device="cpu")


def colebrook(z: Tensor) -> Tensor:
    """-2 log10(k / 3.7 + 2.51 z / Re) for z the inverse root of the friction factor, three k times three Re."""
    rough = torch.tensor([0, 1e-4, 1e-2], dtype=z.dtype, device=z.device).repeat_interleave(3)
    Re = torch.tensor([4e3, 1e5, 1e8], dtype=z.dtype, device=z.device).repeat(3)
    return -2 * torch.log10(rough / 3.7 + 2.51 * z / Re)


def jacobi_line(z: Tensor) -> Tensor:
    """Jacobi's iteration for -u'' = 1, whose rate is cos(pi / 33)."""
    zero = torch.zeros_like(z[:, :1])
    return (torch.cat((zero, z[:, :-1]), 1) + torch.cat((z[:, 1:], zero), 1) + 1 / 33**2) / 2


def _parabola(n: int) -> Tensor:
    t = torch.arange(1, n + 1, dtype=torch.float64, device="cpu") / (n + 1)
    return t * (1 - t) / 2


MATRIX = ((4.0, 1, 0, 0), (1, 3, 1, 0), (0, 1, 2, 1), (0, 0, 1, 3))


def newton_schulz(z: Tensor) -> Tensor:
    """X (2 I - A X): the inverse of a matrix without a division."""
    A = torch.tensor(MATRIX, dtype=z.dtype, device=z.device)
    X = z.reshape(-1, 4, 4)
    return (2 * X - X @ A @ X).reshape(z.shape)


def _inverse() -> Tensor:
    return torch.linalg.inv(torch.tensor(MATRIX, dtype=torch.float64, device="cpu"))
