"""Maps with known fixed points: (B, N) in any floating dtype, truth in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Problem", "contractions", "exact_rows", "linear", "normal", "spectrum", "tanh_layer"]


@dataclass(frozen=True, eq=False)
class Problem:
    """A map, its fixed point (B, N) float64, and a bound of ||(I - J)^-1|| there."""

    name: str
    f: Callable[[Tensor], Tensor]
    truth: Tensor
    kappa: float

    def z0(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return zeros of the shape of the truth."""
        return torch.zeros(self.truth.shape, dtype=dtype)

    def tolerance(self, rtol: float) -> Tensor:
        """Return ``rtol`` times the size of each row's truth."""
        return rtol * self.truth.norm(dim=1)


def normal(seed: int, *shape: int) -> Tensor:
    """Return standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(kind: str, rho: float, N: int, seed: int = 0) -> Tensor:
    """Return an (N, N) float64 matrix of spectral radius ``rho``: "symmetric", "rotation" or "non_normal"."""
    if kind == "symmetric":
        basis = torch.linalg.qr(normal(seed, N, N)).Q
        return basis @ torch.diag(torch.linspace(-rho, rho, N, dtype=torch.float64)) @ basis.T
    if kind == "rotation":
        A = torch.zeros(N, N, dtype=torch.float64)
        for i, angle in zip(range(0, N - 1, 2), torch.linspace(0.4, 2.7, max(1, N // 2)).tolist(), strict=False):
            cos, sin = rho * math.cos(angle), rho * math.sin(angle)
            A[i : i + 2, i : i + 2] = torch.tensor([[cos, -sin], [sin, cos]])
        if N % 2:
            A[-1, -1] = rho
        return A
    assert kind == "non_normal"
    A = torch.triu(normal(seed, N, N), 1) / max(1, N) ** 0.5
    return A + torch.diag(torch.linspace(-rho, rho, N, dtype=torch.float64))


def linear(kind: str, rho: float, B: int = 4, N: int = 12, seed: int = 0) -> Problem:
    """Return z A^T + b with A of a `spectrum`."""
    A, b = spectrum(kind, rho, N, seed), normal(seed + 1, B, N)
    inverse = torch.linalg.inv(torch.eye(N, dtype=torch.float64) - A)
    truth = torch.linalg.solve(torch.eye(N, dtype=torch.float64) - A, b.T).T.contiguous()
    kappa = float(torch.linalg.matrix_norm(inverse, 2)) if N else 1.0
    return Problem(f"{kind}_{rho}", lambda z: z @ A.to(z).T + b.to(z), truth, kappa)


def tanh_layer(rho: float, B: int = 4, N: int = 12, seed: int = 0) -> Problem:
    """Return tanh(z W^T + b) with W of spectral radius ``rho``, solved by Newton's method."""
    W, b = normal(seed, N, N), normal(seed + 1, B, N)
    W = W * (rho / torch.linalg.eigvals(W).abs().max())
    z = torch.zeros_like(b)
    for _ in range(50):
        fz = torch.tanh(z @ W.T + b)
        A = torch.eye(N, dtype=torch.float64) - (1 - fz**2)[:, :, None] * W
        z = z + torch.linalg.solve(A, fz - z)
    fz = torch.tanh(z @ W.T + b)
    assert (fz - z).abs().max() < 1e-13
    inverse = torch.linalg.inv(torch.eye(N, dtype=torch.float64) - (1 - fz**2)[:, :, None] * W)
    kappa = float(torch.linalg.matrix_norm(inverse, 2).max())
    return Problem(f"tanh_{rho}", lambda z: torch.tanh(z @ W.to(z).T + b.to(z)), z, kappa)


def contractions() -> list[Problem]:
    """Return what every solver with "known_answers" must solve."""
    return [linear("symmetric", 0.9), linear("non_normal", 0.5), linear("rotation", 0.8), tanh_layer(0.9)]


def exact_rows(b: Tensor, gain: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a map without cross-row operations whose rows have the same bits in any batch.

    Only additions, products and quotients of single numbers, which IEEE 754 rounds the same way everywhere; matrix
    products and even vectorised tanh do not. b: (B, N); gain: (B, 1), contraction of each row.
    """

    def f(z: Tensor) -> Tensor:
        here, turn = b.to(z), gain.to(z)
        return turn * (0.6 * z.roll(1, dims=1) + 0.4 * z / (1 + z * z)) + here

    return f
