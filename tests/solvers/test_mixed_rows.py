"""Maps that mix rows, against the contract: CONVERGED must still be true for all rows at once."""

from __future__ import annotations

import pytest
import torch

from deqlm_solvers import Anderson, Broyden, Fallback, FixedPoint, Solve, Status, Stop

TARGET = torch.tensor([[1.0], [50.0], [-3.0]], dtype=torch.float64)
RATE = torch.tensor([[0.05], [0.9], [0.3]], dtype=torch.float64)


def mixing(z: torch.Tensor) -> torch.Tensor:
    """Rows of very different speed; the fast ones follow the mean of all."""
    return RATE * z + (1 - RATE) * TARGET + 0.1 * z.mean(0, keepdim=True)


@pytest.mark.parametrize("impl", ["torch", "auto"])
@pytest.mark.parametrize("solver", [FixedPoint(), Anderson(), Broyden()], ids=lambda s: s.name)
@pytest.mark.parametrize("test_every", [1, 3, "auto"])
def test_converged_is_true_for_all_rows_at_once(solver, test_every, impl):
    stop = Stop(max_iter=600, rtol=1e-6, test_every=test_every)
    sol = Solve(solver.replace(impl=impl), stop)(mixing, torch.zeros(3, 4, dtype=torch.float64))
    fz = mixing(sol.z)
    relative = (fz - sol.z).norm(dim=1) / fz.norm(dim=1)
    assert (relative[sol.converged] <= 1.05 * 1e-6).all()
    if solver.name == "fixed_point":
        assert sol.converged.all()


def test_a_solver_is_told_when_rows_are_taken_up():
    """What it has learnt since they were done is of neighbours that moved."""
    points = []

    class Told(FixedPoint):
        def renew(self, z, state):
            points.append(z.clone())
            return super().renew(z, state)

    sol = Solve(Told(), Stop(max_iter=600, rtol=1e-6))(mixing, torch.zeros(3, 4, dtype=torch.float64))
    assert sol.converged.all()
    assert points
    assert all(z.shape == sol.z.shape for z in points)


def test_a_row_that_is_lost_at_the_end_is_not_called_converged():
    sol = Solve(FixedPoint(), Stop(max_iter=12, rtol=1e-3))(mixing, torch.zeros(3, 4, dtype=torch.float64))
    fz = mixing(sol.z)
    relative = (fz - sol.z).norm(dim=1) / fz.norm(dim=1)
    assert (sol.status == Status.MAX_ITER).any()
    assert (relative[sol.converged] <= 1.2e-3).all()


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("max_iter", range(10, 26))
def test_a_row_that_is_lost_in_the_last_evaluation_shows_its_residual_there(impl, max_iter):
    rate = torch.tensor([[0.1], [0.5], [0.8]], dtype=torch.float64)
    b = torch.tensor([[0.4, -0.9], [1.2, 0.3], [-0.6, 0.8]], dtype=torch.float64)

    def f(z: torch.Tensor) -> torch.Tensor:
        return rate * torch.sin(2 * z) + b + 0.5 * torch.roll(z, 1, 0).sin()

    sol = Solve(Anderson(impl=impl), Stop(max_iter=max_iter, rtol=1e-3))(f, b + 1)
    assert (sol.relative[sol.failed] > 1e-3).all()


class Weak:
    """Rows that mix by ``weight`` times their mean: less than a probe sees, more than the tolerance allows."""

    def __init__(self, b: torch.Tensor, rate: torch.Tensor, weight: float) -> None:
        self.b, self.rate, self.weight = b, rate, weight

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        return self.rate * torch.tanh(z) + self.b + self.weight * z.mean(0, keepdim=True)

    def narrow(self, rows: torch.Tensor) -> Weak:
        return Weak(self.b[rows], self.rate[rows], self.weight)


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("solver", [FixedPoint(), Anderson(), Broyden()], ids=lambda s: s.name)
@pytest.mark.parametrize("compact", [True, "at_once"])
@pytest.mark.parametrize(("dtype", "rtol", "weight"), [(torch.float32, 1e-6, 1e-4), (torch.float64, 1e-12, 1e-13)])
def test_rows_that_mix_less_than_a_probe_sees(solver, impl, compact, dtype, rtol, weight):
    """After rows have left, an evaluation of all decides, and a row that no longer passes is taken up again."""
    rate = torch.cat([torch.full((24, 1), 0.05), torch.full((8, 1), 0.97)]).to(dtype)
    f = Weak(3 * torch.randn(32, 256, dtype=torch.float64).to(dtype), rate, weight)
    stop = Stop(max_iter=900, rtol=rtol, compact=compact)
    sol = Solve(solver.replace(impl=impl), stop)(f, torch.zeros(32, 256, dtype=dtype))
    fz = f(sol.z).double()
    relative = (fz - sol.z.double()).norm(dim=1) / fz.norm(dim=1)
    assert sol.cost.row_evaluations < sol.cost.evaluations * 32, "rows have left"
    assert (relative[sol.converged] <= 1.1 * rtol).all()
    assert sol.converged.all()


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_a_row_that_is_lost_when_nothing_is_left_to_pay_is_told(impl):
    rate = torch.cat([torch.full((24, 1), 0.05), torch.full((8, 1), 0.97)]).double()
    f = Weak(3 * torch.randn(32, 256, dtype=torch.float64), rate, 1e-13)
    alone = Solve(FixedPoint(impl=impl), Stop(max_iter=900, rtol=1e-12, compact=False))(
        f, torch.zeros(32, 256).double()
    )
    stop = Stop(max_iter=int(alone.steps[:24].max()) + 8, rtol=1e-12)
    sol = Solve(FixedPoint(impl=impl), stop)(f, torch.zeros(32, 256).double())
    fz = f(sol.z)
    relative = (fz - sol.z).norm(dim=1) / fz.norm(dim=1)
    assert (relative[sol.converged] <= 1.1e-12).all()
    assert (sol.status[24:] == Status.MAX_ITER).all()


def chain(z: torch.Tensor) -> torch.Tensor:
    """The first row never settles; each further one follows the row before it a little."""
    before = torch.cat([torch.zeros_like(z[:1]), z[:-1]])
    own = torch.where(torch.arange(len(z))[:, None] == 0, 50 - z, 0.2 * z + 1)
    return own + 1e-4 * before


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("compact", [True, False, "at_once"])
@pytest.mark.parametrize("max_iter", [11, 12])
def test_a_row_is_converged_beside_what_the_others_return(impl, compact, max_iter):
    """A row that fails returns its best point, not its last one, beside which its neighbour passed."""
    stop = Stop(max_iter=max_iter, rtol=1e-6, compact=compact)
    sol = Solve(FixedPoint(impl=impl, first_damping=0.9), stop)(chain, torch.zeros(3, 4, dtype=torch.float64))
    fz = chain(sol.z)
    residual = (fz - sol.z).norm(dim=1)
    assert sol.failed[0]
    assert (residual[sol.converged] <= 1.05e-6 * fz.norm(dim=1)[sol.converged]).all()
    assert torch.allclose(residual, sol.residual, rtol=0.06, atol=1e-5), "told is the residual of what is returned"
    assert sol.cost.evaluations == max_iter + 1, "one look at all that is returned"
    alone = Solve(FixedPoint(impl=impl), stop)(chain, torch.zeros(1, 4, dtype=torch.float64))
    assert alone.cost.evaluations == max_iter


def test_a_fallback_looks_again_where_rows_could_not_leave():
    gain = torch.tensor([[0.5], [-3.0], [0.3]], dtype=torch.float64)

    def f(z: torch.Tensor) -> torch.Tensor:
        return gain * z + 1 + 1e-12 * torch.roll(z, 1, 0) ** 2

    start = torch.tensor([[0.0], [1e4], [0.0]], dtype=torch.float64)
    stop = Stop(max_iter=60, rtol=1e-12, compact=False)
    sol = Solve(Fallback("fixed_point", "anderson"), stop)(f, start)
    fz = f(sol.z)
    assert ((fz - sol.z).norm(dim=1)[sol.converged] <= 1.05e-12 * fz.norm(dim=1)[sol.converged]).all()
