"""Levenberg-Marquardt: its steps, what it solves where Newton cannot, and that it descends."""

import pytest
import torch

from deqlm.testing.solvers.counting import Counted
from deqlm_solvers import LevenbergMarquardt, Newton, Solve, Stop

F64 = torch.float64


def rosenbrock(z):
    return z - torch.stack((1 - z[:, 0], 10 * (z[:, 1] - z[:, 0] ** 2)), 1)


def powell(x):
    """Powell's singular function, whose Jacobian has rank 2 at the root 0."""
    a, b, c, d = x.unbind(1)
    parts = (a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2)
    return x - torch.stack(parts, 1)


def test_the_first_step_solves_the_damped_normal_equations():
    z0 = torch.tensor([[-1.2, 1.0], [0.5, 2.0]], dtype=F64)
    seen = Counted(rosenbrock)
    Solve(LevenbergMarquardt(mu=0.3), Stop(max_iter=6, rtol=0))(seen, z0)
    tried = next(p for p in seen.points if not torch.equal(p, z0) and p.shape == z0.shape)
    for i in range(2):
        J = torch.autograd.functional.jacobian(lambda z: rosenbrock(z[None])[0], z0[i])
        A, r = torch.eye(2, dtype=F64) - J, rosenbrock(z0[i : i + 1])[0] - z0[i]
        damping = 0.3 * A.square().sum() / 2
        want = torch.linalg.solve(A.T @ A + damping * torch.eye(2, dtype=F64), A.T @ r)
        torch.testing.assert_close(tried[i] - z0[i], want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_curved_valley(dtype):
    z0 = torch.tensor([[-1.2, 1.0]], dtype=dtype)
    sol = Solve(LevenbergMarquardt(), Stop(rtol=1e-6, max_iter=200))(rosenbrock, z0)
    assert sol.converged.all()
    torch.testing.assert_close(sol.z, torch.ones(1, 2, dtype=dtype), rtol=1e-4, atol=1e-4)


def test_a_solution_with_a_singular_jacobian():
    z0 = torch.tensor([[3.0, -1.0, 0.0, 1.0]], dtype=F64)
    sol = Solve(LevenbergMarquardt(), Stop(rtol=0, atol=1e-10, max_iter=400))(powell, z0)
    assert sol.converged.all()
    assert sol.z.abs().max() < 1e-4


def test_a_start_with_a_singular_jacobian():
    f = lambda z: z - torch.stack((z[:, 0] ** 2 - 4, z[:, 1] * z[:, 0]), 1)  # noqa: E731
    z0 = torch.tensor([[0.1, 0.0], [0.0, 1.0]], dtype=F64)
    sol = Solve(LevenbergMarquardt(), Stop(rtol=0, atol=1e-9, max_iter=200))(f, z0)
    assert sol.converged[0]
    assert sol.z[0, 0].abs().item() == pytest.approx(2.0)
    assert sol.residual[1] <= (f(z0) - z0)[1].norm()


def test_accepted_points_never_have_a_larger_residual():
    stop, z0 = Stop(rtol=1e-12, max_iter=90, trace=True), torch.tensor([[-1.2, 1.0]], dtype=F64)
    sol = Solve(LevenbergMarquardt(), stop)(rosenbrock, z0)
    best = sol.trace.cummin(0).values
    accepted = sol.trace == best
    assert accepted.sum() > 5
    assert sol.residual <= sol.trace.min()


def test_near_the_solution_it_is_newtons_method():
    f = lambda z: torch.tanh(z @ torch.tensor([[0.5, 1.0], [-1.0, 0.2]], dtype=F64) + 0.3)  # noqa: E731
    z0 = torch.zeros(1, 2, dtype=F64)
    steps = [Solve(s, Stop(rtol=1e-12))(f, z0).steps.item() for s in (LevenbergMarquardt(mu=1e-4), Newton())]
    assert steps[0] <= steps[1] + 1


@pytest.mark.parametrize("mu", [0.0, -1.0])
def test_a_damping_that_is_none_is_refused(mu):
    with pytest.raises(ValueError, match="mu must be > 0, got"):
        LevenbergMarquardt(mu=mu)
