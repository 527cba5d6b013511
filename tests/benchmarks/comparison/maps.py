"""The maps on which speed is compared: shapes, difficulties and costs of f that a user meets."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EASY_CHEAP", "EASY_COSTLY", "EASY_MIDDLE", "HARD", "SpeedMap", "bad_rows", "speed_maps", "true_residual"]

F64 = torch.float64
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

EASY_CHEAP = "easy, f of about 10 us"
EASY_MIDDLE = "easy, f of about 100 us"
EASY_COSTLY = "easy, f of about 2 ms"
HARD = "slow or expanding"


@dataclass(frozen=True, eq=False)
class SpeedMap:
    """A map z = f(z, *args) on rows, with what a timing needs to know of it.

    Attributes:
        name: what the reader is shown.
        group: one of the groups of this module.
        kind: formula, by its name in `FORMULAS`, or "transformer".
        shared: parameters of all rows; the tensors of the formula, or a module.
        args: tensors with one entry per row.
        z0: start, (B, N).
        max_iter: evaluations a solver may make.
    """

    name: str
    group: str
    kind: str
    shared: tuple[Any, ...]
    args: tuple[Tensor, ...]
    z0: Tensor
    max_iter: int = 1000

    @property
    def f(self) -> Callable[..., Tensor]:
        """The map as a function of z and the tensors in ``args``."""
        return partial(FORMULAS[self.kind], self.shared)

    @property
    def closed(self) -> Callable[[Tensor], Tensor]:
        """The map of z alone, for solvers that take no arguments."""
        formula, shared, args = FORMULAS[self.kind], self.shared, self.args
        return lambda z: formula(shared, z, *args)

    @property
    def tol(self) -> float:
        """Relative tolerance asked for."""
        return TOLERANCE[self.z0.dtype]

    def exact(self) -> Callable[[Tensor], Tensor]:
        """Return the same map in float64: the parameters are widened, not drawn again."""
        shared = tuple(copy.deepcopy(p).double() if isinstance(p, nn.Module) else p.double() for p in self.shared)
        args = tuple(a.double() for a in self.args)
        return lambda z: FORMULAS[self.kind](shared, z, *args)

    def take(self, rows: Tensor) -> SpeedMap:
        """Return the same map on some of its rows, (K,) indices."""
        name = f"{self.name}, {len(rows)} rows"
        args = tuple(a[rows] for a in self.args)
        return SpeedMap(name, self.group, self.kind, self.shared, args, self.z0[rows], self.max_iter)


def tanh(shared: tuple[Tensor, ...], z: Tensor, b: Tensor) -> Tensor:
    """Return the hyperbolic tangent of z W + b."""
    return torch.tanh(torch.addmm(b, z, shared[0]))


def linear(shared: tuple[Tensor, ...], z: Tensor, b: Tensor) -> Tensor:
    """Return z A + b."""
    return torch.addmm(b, z, shared[0])


def two_cycle(shared: tuple[Tensor, ...], z: Tensor, b: Tensor) -> Tensor:
    """Return tanh(b - 1.6 z)."""
    return torch.tanh(b - 1.6 * z)


def gained(shared: tuple[Tensor, ...], z: Tensor, gain: Tensor, b: Tensor) -> Tensor:
    """Return gain z A + b, with a gain per row."""
    return torch.addmm(b, z * gain, shared[0])


def transformer(shared: tuple[nn.Module, ...], z: Tensor, u: Tensor) -> Tensor:
    """Return layer(z + u) on rows of L x D numbers."""
    return shared[0](z.view(u.shape) + u).flatten(1)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "tanh": tanh,
    "linear": linear,
    "two_cycle": two_cycle,
    "gained": gained,
    "transformer": transformer,
}
"""Name of a formula -> f(shared, z, *args)."""


def speed_maps(dtype: torch.dtype = torch.float32, seed: int = 0) -> Iterator[SpeedMap]:
    """Yield the maps, drawn in float64 and rounded to ``dtype``; equal seeds give equal maps.

    Examples:
        >>> [m.z0.shape for m in speed_maps()][0]
        torch.Size([24, 48])
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    def row_map(name: str, group: str, kind: str, weight: Tensor | None, *args: Tensor) -> SpeedMap:
        shared = () if weight is None else (weight.to(dtype),)
        rounded = tuple(a.to(dtype) for a in args)
        return SpeedMap(name, group, kind, shared, rounded, torch.zeros_like(rounded[-1]))

    for n, rows, rho, group in (
        (48, 24, 0.6, EASY_CHEAP),
        (48, 24, 0.93, EASY_CHEAP),
        (96, 2, 0.9, EASY_CHEAP),
        (384, 24, 0.6, EASY_MIDDLE),
        (384, 24, 0.93, EASY_MIDDLE),
        (80, 200, 0.9, EASY_MIDDLE),
        (1024, 96, 0.9, EASY_COSTLY),
    ):
        w = normal(n, n)
        name = f"tanh rho {rho:g}, N={n} B={rows}"
        yield row_map(name, group, "tanh", (w * (rho / radius(w))).T.contiguous(), normal(rows, n))
    yield row_map("symmetric .9, N=300 B=24", EASY_MIDDLE, "linear", symmetric(normal(300, 300), 0.9), normal(24, 300))
    yield row_map("symmetric .99, N=64 B=24", HARD, "linear", symmetric(normal(64, 64), 0.99), normal(24, 64))
    a = normal(64, 64) + 2 * torch.triu(normal(64, 64), 1)
    yield row_map("non-normal .95, N=64 B=24", HARD, "linear", (a * (0.95 / radius(a))).T.contiguous(), normal(24, 64))
    for angles in (8, 32):
        name = f"rotations of .98, {angles} angles, N=64 B=24"
        yield row_map(name, HARD, "linear", rotations(0.98, 32, angles), normal(24, 64))
    yield row_map("two-cycle tanh(b - 1.6 z), N=64 B=24", HARD, "two_cycle", None, normal(24, 64))
    yield block_map(normal(4, 32, 64), dtype, seed)


def bad_rows(dtype: torch.dtype = torch.float32, seed: int = 0) -> Iterator[tuple[str, SpeedMap, int]]:
    """Yield (what is wrong, a map of 32 rows with one bad one, its number); N=128, the others contract by .5."""
    g = torch.Generator().manual_seed(seed + 1)
    w = symmetric(torch.randn(128, 128, generator=g, dtype=F64), 1.0).to(dtype)
    b = torch.randn(32, 128, generator=g, dtype=F64).to(dtype)
    for what, value, most in (("hard, radius .998", 0.998, 1000), ("diverging, radius 3", 3.0, 200), ("NaN", 0.5, 200)):
        gain = torch.full((32, 1), 0.5, dtype=dtype)
        gain[7] = value
        rows = b.clone()
        if what == "NaN":
            rows[7, 3] = torch.nan
        yield what, SpeedMap(f"one row {what}", HARD, "gained", (w,), (gain, rows), torch.zeros_like(b), most), 7


def true_residual(exact: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return ||f(z) - z|| / ||f(z)|| per row, f in float64, (B,); infinite where it is not finite."""
    with torch.no_grad():
        wide = z.detach().double()
        fz = exact(wide)
        ratio = torch.linalg.vector_norm(fz - wide, dim=1) / torch.linalg.vector_norm(fz, dim=1)
    return ratio.nan_to_num(nan=math.inf, posinf=math.inf)


def block_map(u: Tensor, dtype: torch.dtype, seed: int) -> SpeedMap:
    """Return a stock transformer layer of random weights as a map; u: (B, L, D)."""
    rows, length, width = u.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
    layer = layer.eval().requires_grad_(False).to(dtype)
    name = f"transformer layer, L={length} D={width} B={rows}"
    z0 = torch.zeros(rows, length * width, dtype=dtype)
    return SpeedMap(name, EASY_COSTLY, "transformer", (layer,), (u.to(dtype),), z0)


def radius(a: Tensor) -> Tensor:
    """Return the spectral radius of a square matrix."""
    return torch.linalg.eigvals(a).abs().max()


def symmetric(square: Tensor, rho: float) -> Tensor:
    """Return a symmetric matrix with the eigenvectors of a random one and a spectrum spread over [-rho, rho]."""
    q, _ = torch.linalg.qr(square)
    return q * torch.linspace(-rho, rho, len(q), dtype=q.dtype) @ q.T


def rotations(size: float, pairs: int, angles: int) -> Tensor:
    """Return a block-diagonal matrix that turns pairs of unknowns by so many angles, .3 to 2.8, and scales them."""
    blocks = []
    for angle in torch.linspace(0.3, 2.8, angles, dtype=F64).repeat(pairs // angles).tolist():
        c, s = size * math.cos(angle), size * math.sin(angle)
        blocks.append(torch.tensor([[c, -s], [s, c]], dtype=F64))
    return torch.block_diag(*blocks)
