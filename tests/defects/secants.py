"""What Anderson and Broyden owe by default: the scale of f, bad points on the way, roots that repel, histories."""

from __future__ import annotations

import torch
from torch import Tensor

import deqlm
from defects.maps import F64, residual
from deqlm import Anderson, Broyden, Stop

NEAR = Stop(max_iter=300, rtol=1e-8, atol=1e-8)


def exponential(z: Tensor, b: Tensor) -> Tensor:
    """Return z - (exp(z) - b), whose plain step from 0 is as long as b is large."""
    return z - (z.exp() - b)


def ours_leaves_a_root_that_repels() -> None:
    rows = 0.3 * torch.randn(64, 4)
    for solver in ("anderson", "fallback"):
        sol = deqlm.solve(lambda z: torch.tanh(2 * z), torch.tensor([[0.1]]), solver=solver)
        assert sol.converged.all()
        assert abs(sol.z.item() - 0.9575) < 1e-3
        assert sol.steps.item() <= 12, "plain iteration needs 9"
        others = deqlm.solve(lambda z: torch.tanh(1.2 * z), rows, solver=solver, on_failure="ignore")
        assert int(others.converged.sum()) >= (60 if solver == "anderson" else 64)


def ours_takes_the_scale_of_f_from_the_first_pair() -> None:
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64))
    for scale in (1e-2, 1.0, 1e2, 1e4):
        sol = deqlm.solve(
            lambda z, s=scale: z - s * (z @ A + z**3 - 1), torch.zeros(1, 4, dtype=F64), solver="anderson", stop=NEAR
        )
        assert sol.converged.all()
        assert sol.steps.item() <= 30


def ours_goes_on_from_a_wild_first_step() -> None:
    b = torch.linspace(0.5, 50, 200, dtype=F64)[:, None]
    z0 = torch.zeros_like(b)
    for solver, least in (("anderson", 200), ("broyden", 150)):
        sol = deqlm.solve(exponential, z0, args=(b,), solver=solver, stop=NEAR, on_failure="ignore")
        assert int(sol.converged.sum()) >= least
        assert residual(lambda z: exponential(z, b), sol.z)[sol.converged].max() <= 1e-6


def ours_keeps_no_longer_a_history_than_a_solve_can_use() -> None:
    for solver in (Anderson(memory=10**6), Broyden(memory=10**6)):
        assert solver.fitted(unknowns=1, max_iter=100).memory <= 8
        sol = deqlm.solve(lambda z: 0.5 * z.cos(), torch.zeros(2, 3), solver=solver)
        assert sol.converged.all(), "it would be a matrix of 10**12 numbers for three unknowns"
