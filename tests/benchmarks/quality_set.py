"""Thirty problems for the quality of solvers: maps with known difficulty, in float32 and float64 alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

F64 = torch.float64


class Problem(NamedTuple):
    """A map on rows of any floating dtype, and how many evaluations a solver gets."""

    name: str
    f: Callable[[Tensor], Tensor]
    start: Tensor
    hard: bool = False

    def max_iter(self, dtype: torch.dtype) -> int:
        return 1000 if self.hard else 200 if dtype == torch.float32 else 300


def problems(seed: int = 0) -> Iterator[Problem]:
    """Yield the set; the same seed gives the same maps."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    for rho in (0.5, 0.9, 0.99):
        for n, rows in ((64, 32), (256, 8)):
            q, _ = torch.linalg.qr(normal(n, n))
            b = normal(rows, n)
            a = q @ torch.diag(torch.linspace(-rho, rho, n, dtype=F64)) @ q.T
            yield Problem(f"symmetric {rho} N={n}", linear(a, b), torch.zeros(rows, n), rho == 0.99)
            a = normal(n, n) / n**0.5
            a = a + torch.triu(normal(n, n), 1) * 2 / n**0.5
            yield Problem(f"non-normal {rho} N={n}", linear(a * rho / radius(a), b), torch.zeros(rows, n), rho == 0.99)
    for rho in (0.5, 0.9, 1.2):
        for n, rows in ((64, 32), (512, 8), (2048, 2)):
            w = normal(n, n) / n**0.5
            f = linear(w * rho / radius(w), normal(rows, n))
            yield Problem(f"tanh {rho} N={n}", lambda z, f=f: torch.tanh(f(z)), torch.zeros(rows, n))
    b = normal(32, 64)
    zeros = torch.zeros(32, 64)
    yield Problem("two-cycle tanh", lambda z: torch.tanh(-1.6 * z + b.to(z.dtype)), zeros)
    yield Problem("two-cycle linear", lambda z: -1.1 * z + b.to(z.dtype), zeros)
    for size in (0.98, 1.1):
        yield Problem(f"rotation {size}", turning(torch.full((32,), math.pi / 3, dtype=F64), size, b), zeros)
    yield Problem("rotations .98", turning(torch.linspace(0.3, 2.8, 32, dtype=F64), 0.98, b), zeros)
    yield Problem("logistic", lambda z: 3.3 * z * (1 - z), torch.full((8, 4), 0.5))
    rate = torch.full((32, 1), 0.5, dtype=F64)
    rate[7] = 0.998
    w = normal(64, 64)
    w = w + w.T
    w = w / torch.linalg.eigvalsh(w).abs().max()
    yield Problem("one hard row", lambda z: rate.to(z.dtype) * (z @ w.to(z.dtype)) + b.to(z.dtype), zeros, True)
    chain = linear(torch.diag(torch.full((199,), 0.99, dtype=F64), -1), normal(4, 200))
    yield Problem("causal chain", lambda z: torch.tanh(chain(z)), torch.zeros(4, 200))
    yield transformer(normal(4, 32, 64))


def radius(a: Tensor) -> Tensor:
    """Return the spectral radius of a square matrix."""
    return torch.linalg.eigvals(a).abs().max()


def linear(a: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: z @ a.to(z.dtype).T + b.to(z.dtype)


def turning(angles: Tensor, size: float, b: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a map that turns each of 32 pairs of unknowns by its own angle."""
    cos, sin = angles.cos(), angles.sin()
    turns = size * torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)

    def f(z: Tensor) -> Tensor:
        return torch.einsum("bkj,kij->bki", z.view(-1, 32, 2), turns.to(z.dtype)).reshape(z.shape) + b.to(z.dtype)

    return f


def transformer(x: Tensor) -> Problem:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True).double().eval()
    layers = {F64: layer, torch.float32: copy.deepcopy(layer).float()}
    shape = x.shape

    def f(z: Tensor) -> Tensor:
        return layers[z.dtype](z.view(shape) + x.to(z.dtype)).reshape(z.shape)

    return Problem("transformer", f, torch.zeros(shape[0], x[0].numel()))
