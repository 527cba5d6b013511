"""Fifty problems for the quality of solvers: maps of known difficulty, in float32 and float64 alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from benchmarks.comparison.maps import radius

__all__ = ["QualityProblem", "all_problems", "more_problems", "problems"]

F64 = torch.float64


@dataclass(frozen=True, eq=False)
class QualityProblem:
    """A map on rows of any floating dtype, and how many evaluations a solver gets.

    Attributes:
        name: what the reader is shown.
        f: the map, (B, N) -> (B, N), in the dtype of its argument.
        start: z0, (B, N) float32.
        hard: 1000 evaluations instead of 200 in float32 and 300 in float64.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    start: Tensor
    hard: bool = False

    def max_iter(self, dtype: torch.dtype) -> int:
        """Return the evaluations that a solver may make."""
        return 1000 if self.hard else 200 if dtype == torch.float32 else 300


def all_problems(seed: int = 0) -> Iterator[QualityProblem]:
    """Yield all fifty; the same seed gives the same maps.

    Examples:
        >>> next(all_problems()).name
        'symmetric 0.5 N=64'
    """
    return chain(problems(seed), more_problems(seed))


def problems(seed: int = 0) -> Iterator[QualityProblem]:
    """Yield the first thirty."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    for rho in (0.5, 0.9, 0.99):
        for n, rows in ((64, 32), (256, 8)):
            q, _ = torch.linalg.qr(normal(n, n))
            b = normal(rows, n)
            a = q @ torch.diag(torch.linspace(-rho, rho, n, dtype=F64)) @ q.T
            yield QualityProblem(f"symmetric {rho} N={n}", linear(a, b), torch.zeros(rows, n), rho == 0.99)
            a = normal(n, n) / n**0.5
            a = a + torch.triu(normal(n, n), 1) * 2 / n**0.5
            f = linear(a * rho / radius(a), b)
            yield QualityProblem(f"non-normal {rho} N={n}", f, torch.zeros(rows, n), rho == 0.99)
    for rho in (0.5, 0.9, 1.2):
        for n, rows in ((64, 32), (512, 8), (2048, 2)):
            yield tanh_layer(rho, normal(n, n), normal(rows, n))
    b = normal(32, 64)
    zeros = torch.zeros(32, 64)
    yield QualityProblem("two-cycle tanh", lambda z: torch.tanh(-1.6 * z + b.to(z.dtype)), zeros)
    yield QualityProblem("two-cycle linear", lambda z: -1.1 * z + b.to(z.dtype), zeros)
    for size in (0.98, 1.1):
        angles = torch.full((32,), math.pi / 3, dtype=F64)
        yield QualityProblem(f"rotation {size}", turning(angles, size, b), zeros)
    yield QualityProblem("rotations .98", turning(torch.linspace(0.3, 2.8, 32, dtype=F64), 0.98, b), zeros)
    yield QualityProblem("logistic", lambda z: 3.3 * z * (1 - z), torch.full((8, 4), 0.5))
    yield hard_row(0.998, normal(64, 64), b)
    chained = linear(torch.diag(torch.full((199,), 0.99, dtype=F64), -1), normal(4, 200))
    yield QualityProblem("causal chain", lambda z: torch.tanh(chained(z)), torch.zeros(4, 200))
    yield transformer("transformer", normal(4, 32, 64))


def more_problems(seed: int = 0) -> Iterator[QualityProblem]:
    """Yield the other twenty: more batch sizes, expanding layers, and the peers' known stumbling blocks."""
    g = torch.Generator().manual_seed(seed + 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    for n, rows in ((64, 1), (128, 8), (256, 8), (512, 1), (1024, 4), (1024, 1)):
        yield tanh_layer(1.2, normal(n, n), normal(rows, n))
    for n, rows, rho in ((64, 256, 0.9), (512, 256, 0.5), (64, 1, 0.99), (256, 8, 1.05)):
        yield tanh_layer(rho, normal(n, n), normal(rows, n))
    b = normal(32, 64)
    zeros = torch.zeros(32, 64)
    yield QualityProblem("two-cycle tanh, slope 3", lambda z: torch.tanh(-3 * z + b.to(z.dtype)), zeros)
    yield QualityProblem("two-cycle linear, slope 2", lambda z: -2 * z + b.to(z.dtype), zeros)
    angle = torch.full((32,), math.pi / 3, dtype=F64)
    yield QualityProblem("rotation 1.5", turning(angle, 1.5, b), zeros)
    yield QualityProblem(
        "rotations 1.1, 4 angles", turning(torch.linspace(0.3, 2.8, 4, dtype=F64).repeat(8), 1.1, b), zeros
    )
    yield QualityProblem("logistic 3.5", lambda z: 3.5 * z * (1 - z), torch.full((8, 4), 0.5))
    yield hard_row(0.99, normal(256, 256), normal(32, 256))
    chained = linear(torch.diag(torch.full((255,), 0.9, dtype=F64), -1), normal(1, 256))
    yield QualityProblem("causal linear chain", chained, torch.zeros(1, 256), True)
    a = normal(300, 300)
    q, _ = torch.linalg.qr(a)
    a = q @ torch.diag(torch.linspace(-0.95, 0.95, 300, dtype=F64)) @ q.T
    yield QualityProblem("symmetric 0.95 N=300 B=1", linear(a, normal(1, 300)), torch.zeros(1, 300), True)
    yield QualityProblem("cosine", torch.cos, torch.zeros(4, 16))
    yield transformer("transformer, weights x 2", normal(2, 16, 32), gain=2.0)


def tanh_layer(rho: float, w: Tensor, b: Tensor) -> QualityProblem:
    """Return tanh(z W^T + b) with W scaled to a spectral radius."""
    rows, n = b.shape
    f = linear(w / n**0.5 * rho / radius(w / n**0.5), b)
    return QualityProblem(f"tanh {rho} N={n} B={rows}", lambda z: torch.tanh(f(z)), torch.zeros(rows, n))


def hard_row(rho: float, w: Tensor, b: Tensor) -> QualityProblem:
    """Return a symmetric linear map of radius .5 with one row of radius rho."""
    rate = torch.full((len(b), 1), 0.5, dtype=F64)
    rate[7] = rho
    w = w + w.T
    w = w / torch.linalg.eigvalsh(w).abs().max()
    name = "one hard row" if rho == 0.998 else f"one hard row {rho} N={len(w)}"
    zeros = torch.zeros(b.shape)
    return QualityProblem(name, lambda z: rate.to(z.dtype) * (z @ w.to(z.dtype)) + b.to(z.dtype), zeros, True)


def linear(a: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    """Return z A^T + b in the dtype of z."""
    held = {d: (a.to(d).T.contiguous(), b.to(d)) for d in (torch.float32, F64)}
    return lambda z: torch.addmm(held[z.dtype][1], z, held[z.dtype][0])


def turning(angles: Tensor, size: float, b: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a map that turns each of 32 pairs of unknowns by its own angle."""
    cos, sin = angles.cos(), angles.sin()
    turns = size * torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)

    def f(z: Tensor) -> Tensor:
        return torch.einsum("bkj,kij->bki", z.view(-1, 32, 2), turns.to(z.dtype)).reshape(z.shape) + b.to(z.dtype)

    return f


def transformer(name: str, x: Tensor, gain: float = 1.0) -> QualityProblem:
    """Return a stock transformer layer of random weights, times ``gain``, on inputs x (B, L, D)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(x.shape[-1], 4, 128, dropout=0.0, batch_first=True).double().eval()
    layer.requires_grad_(False)
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(gain)
    layers = {F64: layer, torch.float32: copy.deepcopy(layer).float()}
    shape = x.shape

    def f(z: Tensor) -> Tensor:
        return layers[z.dtype](z.view(shape) + x.to(z.dtype)).reshape(z.shape)

    return QualityProblem(name, f, torch.zeros(shape[0], x[0].numel()))
