"""Known answers in float64: dense Jacobians, Newton's method."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm_solvers.core.solver import Map
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.methods.anderson import Anderson
from deqlm_solvers.solve import Solve

__all__ = ["jacobians", "polish"]


def jacobians(f: Map, z: Tensor) -> Tensor:
    """Return the Jacobian of every row of ``f`` at ``z`` (B, N), as (B, N, N), by N products with its transpose.

    Right for maps that work row by row. ``f`` may be evaluated in any dtype; the Jacobian has the dtype of z.
    """
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        fz = f(point)
        unit = torch.zeros_like(fz)
        lines = []
        for i in range(z.shape[1]):
            unit[:, i] = 1
            (line,) = torch.autograd.grad(fz, point, unit, retain_graph=True)
            # where f hands its cotangent through, the line is ``unit`` itself
            lines.append(line.clone())
            unit[:, i] = 0
    return torch.stack(lines, dim=1)


def polish(f: Map, z0: Tensor, tol: float = 1e-12, steps: int = 8) -> Tensor | None:
    """Return a fixed point of ``f`` near what Anderson finds from ``z0`` (float64), polished by Newton's method.

    Returns:
        (B, N), or None when the residual does not fall to ``tol`` relative to f(z) in every row.
    """
    z = Solve(Anderson(memory=25), Stop(max_iter=500, rtol=1e-9))(f, z0.double()).z
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    for _ in range(steps):
        with torch.no_grad():
            fz = f(z)
        r = fz - z
        small = torch.linalg.vector_norm(r, dim=1) <= tol * torch.linalg.vector_norm(fz, dim=1)
        if bool(small.all()):
            return z
        step, info = torch.linalg.solve_ex(eye - jacobians(f, z), r[:, :, None])
        if bool(info.any()):
            return None
        z = z + step[:, :, 0]
    return None
