"""Maps that mix rows, against the contract: CONVERGED must still be true for all rows at once."""

from __future__ import annotations

import pytest
import torch

from deqlm_solvers import Anderson, Broyden, FixedPoint, Solve, Status, Stop

TARGET = torch.tensor([[1.0], [50.0], [-3.0]], dtype=torch.float64)
RATE = torch.tensor([[0.05], [0.9], [0.3]], dtype=torch.float64)


def mixing(z: torch.Tensor) -> torch.Tensor:
    """Rows of very different speed; the fast ones follow the mean of all."""
    return RATE * z + (1 - RATE) * TARGET + 0.1 * z.mean(0, keepdim=True)


@pytest.mark.parametrize("solver", [FixedPoint(), Anderson(), Broyden()], ids=lambda s: s.name)
@pytest.mark.parametrize("test_every", [1, 3, "auto"])
def test_converged_is_true_for_all_rows_at_once(solver, test_every):
    stop = Stop(max_iter=600, rtol=1e-6, test_every=test_every)
    sol = Solve(solver, stop)(mixing, torch.zeros(3, 4, dtype=torch.float64))
    fz = mixing(sol.z)
    relative = (fz - sol.z).norm(dim=1) / fz.norm(dim=1)
    assert (relative[sol.converged] <= 1.05 * 1e-6).all()
    if solver.name == "fixed_point":
        assert sol.converged.all()


def test_a_row_that_is_lost_at_the_end_is_not_called_converged():
    sol = Solve(FixedPoint(), Stop(max_iter=12, rtol=1e-3))(mixing, torch.zeros(3, 4, dtype=torch.float64))
    fz = mixing(sol.z)
    relative = (fz - sol.z).norm(dim=1) / fz.norm(dim=1)
    assert (sol.status == Status.MAX_ITER).any()
    assert (relative[sol.converged] <= 1.2e-3).all()
