"""A layer with a known derivative, and what every check of a gradient method needs around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deqlm.deq import DEQ
from deqlm.gradients.base import GRADIENTS, Gradient
from deqlm_solvers import Solve, Stop

__all__ = ["F64", "SHARP", "TanhLayer", "dense_gradients", "gradients", "sharp", "solver_for", "wrap"]

F64 = torch.float64
SHARP = Stop(max_iter=500, rtol=1e-13)


class TanhLayer(nn.Module):
    """z -> tanh(W z + b + u), with ||W|| = ``size``."""

    def __init__(self, n: int, size: float = 0.5, dtype: torch.dtype = F64) -> None:
        super().__init__()
        W = torch.randn(n, n, dtype=dtype)
        self.W = nn.Parameter(size * W / torch.linalg.matrix_norm(W, 2))
        self.b = nn.Parameter(0.3 * torch.randn(n, dtype=dtype))

    def forward(self, z: Tensor, u: Tensor | float = 0.0) -> Tensor:
        """Return the next state, (B, N)."""
        return torch.tanh(z @ self.W.T + self.b + u)


def sharp(gradient: str | Gradient) -> Gradient:
    """Return a gradient method, solved as far as float64 goes where its option ``solve`` says how it solves."""
    made = GRADIENTS.make(gradient)
    solve: Any = getattr(made, "solve", "")
    if isinstance(solve, Solve):
        return made.replace(solve=solve.replace(stop=solve.stop.replace(max_iter=SHARP.max_iter, rtol=SHARP.rtol)))
    return made.replace(solve=Solve("anderson", SHARP)) if solve == "auto" else made


def solver_for(gradient: str | Gradient) -> str:
    """Return the first of some solvers that the gradient method accepts.

    Raises:
        ValueError: it refuses all of them; the message is that for the last.
    """
    made = GRADIENTS.make(gradient)
    *before, last = ("anderson", "fixed_point", "reversible", "broyden", "newton")
    for name in before:
        try:
            made.check(Solve(name))
        except ValueError:
            continue
        return name
    made.check(Solve(last))
    return last


def wrap(layer: nn.Module, gradient: str | Gradient, **options: Any) -> DEQ:
    """Return a DEQ with ``u`` as the second argument of ``layer`` and a solver that fits the gradient method."""
    settings = {"inject": "argument", "solver": solver_for(gradient), "stop": SHARP, "start": torch.zeros_like}
    return DEQ(layer, gradient=gradient, **{**settings, **options})


def gradients(y: Tensor, module: nn.Module, *more: Tensor) -> list[Tensor | None]:
    """Return the gradients of y.square().sum() / 2 + y.sum() for every parameter of a module and for ``more``."""
    loss = 0.5 * y.square().sum() + y.sum()
    return list(torch.autograd.grad(loss, [*module.parameters(), *more], allow_unused=True, retain_graph=True))


def dense_gradients(layer: TanhLayer, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the implicit gradients for W, b and u by a dense float64 solve of (I - J^T) w = g per row."""
    W = layer.W.detach().double()
    d = 1 - z.double() ** 2
    eye = torch.eye(z.shape[1], dtype=F64)
    w = torch.stack([torch.linalg.solve(eye - W.T * di, gi) for di, gi in zip(d, g.double(), strict=True)])
    return (d * w).T @ z.double(), (d * w).sum(0), d * w
