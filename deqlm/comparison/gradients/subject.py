"""What gradients are compared on: a case with a loss, and the exact gradient of that loss."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from deqlm.comparison.problem import Case
from deqlm.comparison.recorder import synchronize
from deqlm.comparison.truth import jacobians, polish
from deqlm.functional import solve
from deqlm.gradients import Gradient
from deqlm_solvers import Map, Solve, Stop

__all__ = ["GradientSubject"]


class GradientSubject:
    """A case with its loss and what is differentiated; counts evaluations of f and passes of backward through them.

    As a context it freezes again at its end what was frozen: parameters of the user's own layer may be.
    """

    def __init__(self, case: Case, seed: int, stop: Stop) -> None:
        self.stop = stop
        self.z0 = case.z0
        self.frozen = [p for p in case.parameters if not p.requires_grad]
        draw = torch.Generator().manual_seed(seed + 1)
        self.loss_weight = torch.randn(case.z0.shape, generator=draw, dtype=torch.float64, device="cpu").to(case.z0)
        self.f, self.leaves = _with_leaves(case.f, case.parameters, case.z0)
        self.exact, self.exact_leaves = _with_leaves(case.exact, case.exact_parameters, case.z0.double())
        self.evaluations = self.vjps = 0

    def __enter__(self) -> GradientSubject:
        return self

    def __exit__(self, *error: object) -> None:
        for parameter in self.frozen:
            parameter.requires_grad_(False)

    def counted(self, z: Tensor) -> Tensor:
        """Evaluate f and count."""
        self.evaluations += 1
        fz = self.f(z)
        if fz.requires_grad:
            fz.register_hook(self._passed)
        return fz

    def truth(self) -> Tensor | None:
        """Return the exact gradient as one float64 vector, or None where the fixed point cannot be polished."""
        z = polish(self.exact, self.z0)
        if z is None:
            return None
        system = torch.eye(z.shape[1], dtype=z.dtype, device=z.device) - jacobians(self.exact, z).mT
        w = torch.linalg.solve(system, self.loss_weight.double()[:, :, None])[:, :, 0]
        with torch.enable_grad():
            return _joined(self.exact(z), self.exact_leaves, w)

    def run(self, how: Solve, method: Gradient) -> tuple[Tensor, float, float, Any]:
        """Return the gradient, seconds forward, seconds backward, and the solution."""
        self.evaluations = self.vjps = 0
        device = self.z0.device
        synchronize(device)
        begun = time.perf_counter()
        with torch.enable_grad():
            sol = solve(self.counted, self.z0, solver=how.solver, stop=how.stop, gradient=method, on_failure="ignore")
            synchronize(device)
            halfway = time.perf_counter()
            gradient = _joined(sol.z, self.leaves, self.loss_weight)
        synchronize(device)
        return gradient, halfway - begun, time.perf_counter() - halfway, sol

    def _passed(self, _: Tensor) -> None:
        self.vjps += 1


def _with_leaves(f: Map, parameters: tuple[Tensor, ...], z0: Tensor) -> tuple[Map, tuple[Tensor, ...]]:
    leaves = tuple(p for p in parameters if p.is_floating_point())
    if leaves:
        for leaf in leaves:
            leaf.requires_grad_()
        return f, leaves
    u = torch.zeros_like(z0, requires_grad=True)
    return (lambda z: f(z) + u), (u,)


def _joined(output: Tensor, leaves: tuple[Tensor, ...], cotangent: Tensor) -> Tensor:
    gradients = torch.autograd.grad(output, leaves, cotangent, allow_unused=True)
    parts = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]
    return torch.cat([part.flatten() for part in parts])
