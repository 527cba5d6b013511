"""Maps with known derivatives, and what every gradient test needs around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import deqlm

SHARP = deqlm.Stop(max_iter=500, rtol=1e-13)
NAMES = sorted(deqlm.GRADIENTS)
EXACT = [name for name in NAMES if deqlm.GRADIENTS[name].exact]


class TanhLayer(nn.Module):
    """z -> tanh(W z + b + u), with ||W|| = ``size``."""

    def __init__(self, n: int, size: float = 0.5, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        W = torch.randn(n, n, dtype=dtype)
        self.W = nn.Parameter(size * W / torch.linalg.matrix_norm(W, 2))
        self.b = nn.Parameter(0.3 * torch.randn(n, dtype=dtype))

    def forward(self, z: Tensor, u: Tensor | float = 0.0) -> Tensor:
        return torch.tanh(z @ self.W.T + self.b + u)


def symmetric(spectrum: list[float]) -> Tensor:
    """Return a symmetric float64 matrix with the given eigenvalues."""
    Q = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), dtype=torch.float64)).Q
    return Q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ Q.T


def sharp(name: str) -> deqlm.Gradient:
    """Return a gradient method by name, solved as far as float64 goes where it solves anything."""
    if name == "implicit":
        return deqlm.Implicit(solve=deqlm.Solve("anderson", SHARP))
    return deqlm.GRADIENTS.make(name)


def solver_for(gradient: str | deqlm.Gradient) -> str:
    """Return a solver that the gradient method accepts."""
    try:
        deqlm.GRADIENTS.make(gradient).check(deqlm.Solve("anderson"))
    except ValueError:
        return "fixed_point"
    return "anderson"


def wrap(layer: nn.Module, gradient: str | deqlm.Gradient, **options: object) -> deqlm.DEQ:
    """Return a DEQ with ``u`` as the second argument of ``layer`` and a solver that fits the gradient method."""
    settings = {"inject": "argument", "solver": solver_for(gradient), "stop": SHARP, "start": torch.zeros_like}
    return deqlm.DEQ(layer, gradient=gradient, **{**settings, **options})


def gradients(y: Tensor, module: nn.Module, *more: Tensor) -> list[Tensor | None]:
    """Return the gradients of y.square().sum() / 2 + y.sum() for every parameter of a module and for ``more``."""
    loss = 0.5 * y.square().sum() + y.sum()
    return list(torch.autograd.grad(loss, [*module.parameters(), *more], allow_unused=True, retain_graph=True))


def dense_gradients(layer: TanhLayer, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the implicit gradients for W, b and u by a dense float64 solve of (I - J^T) w = g per row."""
    W = layer.W.detach().double()
    d = 1 - z.double() ** 2
    eye = torch.eye(z.shape[1], dtype=torch.float64)
    w = torch.stack([torch.linalg.solve(eye - W.T * di, gi) for di, gi in zip(d, g.double(), strict=True)])
    return (d * w).T @ z.double(), (d * w).sum(0), d * w
