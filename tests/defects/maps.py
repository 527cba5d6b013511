"""Maps on which the defects show, with their float64 truth, and the true residual of an answer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

F64 = torch.float64
Map = Callable[[Tensor], Tensor]


def symmetric(n: int, radius: float, rows: int, dtype: torch.dtype = F64) -> tuple[Map, Tensor, Tensor]:
    """Return z -> A z + b, eigenvalues spread over [-radius, radius], a start (rows, n), and the float64 solution."""
    Q = torch.linalg.qr(torch.randn(n, n, dtype=F64)).Q
    A = (Q * torch.linspace(-radius, radius, n, dtype=F64)) @ Q.T
    b = torch.randn(rows, n, dtype=F64)
    truth = torch.linalg.solve(torch.eye(n, dtype=F64) - A, b.T).T
    low, shift = A.to(dtype), b.to(dtype)
    return lambda z: z @ low.T + shift, torch.zeros(rows, n, dtype=dtype), truth


def tanh_map(n: int, size: float, rows: int, dtype: torch.dtype = F64) -> tuple[Map, Tensor]:
    """Return z -> tanh(W z + b) with ||W|| = size, and a start (rows, n)."""
    W = torch.randn(n, n, dtype=F64)
    W = (size * W / torch.linalg.matrix_norm(W, 2)).to(dtype)
    b = torch.randn(rows, n, dtype=F64).to(dtype)
    return lambda z: torch.tanh(z @ W.T + b), torch.zeros(rows, n, dtype=dtype)


def weighted(n: int = 4, size: float = 0.9, rows: int = 2) -> tuple[Map, Tensor, Tensor]:
    """Return z -> tanh(W z + b), its W (a float64 leaf that wants a gradient), and a start (rows, n)."""
    W = torch.randn(n, n, dtype=F64)
    W = (size * W / torch.linalg.matrix_norm(W, 2)).requires_grad_()
    b = torch.randn(rows, n, dtype=F64)
    return lambda z: torch.tanh(z @ W.T + b), W, torch.zeros(rows, n, dtype=F64)


def small_layer(dtype: torch.dtype = F64) -> nn.Sequential:
    """Return tanh of a linear layer of four unknowns whose weight is small."""
    layer = nn.Sequential(nn.Linear(4, 4, dtype=dtype), nn.Tanh())
    with torch.no_grad():
        layer[0].weight.mul_(0.5)
    return layer


def iterated(f: Map, z0: Tensor, times: int = 1000) -> Tensor:
    """Return f applied again and again, in the caller's grad mode."""
    z = z0
    for _ in range(times):
        z = f(z)
    return z


def implicit_gradient(f: Map, W: Tensor, z0: Tensor) -> Tensor:
    """Return d sum(z*) / dW by a dense solve of (I - J^T) w = 1, row after row."""
    with torch.no_grad():
        z = iterated(f, z0)
    J = torch.autograd.functional.jacobian(lambda z: f(z).sum(0), z).transpose(0, 1)  # (B, N, N): rows are independent
    eye = torch.eye(z.shape[1], dtype=z.dtype)
    w = torch.linalg.solve(eye - J.mT, torch.ones(*z.shape, 1, dtype=z.dtype))[..., 0]
    return torch.autograd.grad((f(z) * w).sum(), W)[0]


def one_step_gradient(f: Map, W: Tensor, z0: Tensor) -> Tensor:
    """Return the gradient of sum(f(z)) at the solution held fixed."""
    with torch.no_grad():
        z = iterated(f, z0)
    return torch.autograd.grad(f(z).sum(), W)[0]


def distance(a: Tensor, b: Tensor) -> float:
    """Return ||a - b|| / ||b||."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def residual(f: Map, z: Tensor) -> Tensor:
    """Return ||f(z) - z|| per row, accumulated in float64."""
    with torch.no_grad():
        return (f(z) - z).double().flatten(1).norm(dim=1)


def relative(f: Map, z: Tensor) -> Tensor:
    """Return ||f(z) - z|| / ||f(z)|| per row."""
    with torch.no_grad():
        return residual(f, z) / f(z).double().flatten(1).norm(dim=1)
