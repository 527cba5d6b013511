"""Pseudo-transient continuation: its steps, its limits, and the points that it finds."""

import pytest
import torch

from deqlm.testing.solvers.problems import linear
from deqlm_solvers import Newton, PseudoTransient, Solve, Stop

F64 = torch.float64


def test_the_step_is_implicit_euler_with_a_length_that_grows_as_the_residual_falls():
    problem = linear("non_normal", 0.9, B=3, N=4)
    A = torch.stack([problem.f(e.expand(3, 4))[0] - problem.f(problem.z0())[0] for e in torch.eye(4, dtype=F64)], 1)
    z, points = problem.z0(), [problem.z0()]
    first = (problem.f(z) - z).norm(dim=1, keepdim=True)
    for _ in range(3):
        r = problem.f(z) - z
        delta = 0.5 * first / r.norm(dim=1, keepdim=True)
        system = torch.eye(4, dtype=F64) * (1 + 1 / delta)[..., None] - A
        z = z + torch.linalg.solve(system, r)
        points.append(z)
    sol = Solve(PseudoTransient(delta=0.5), Stop(max_iter=15, rtol=0))(problem.f, problem.z0())
    torch.testing.assert_close(sol.z, points[3], rtol=1e-10, atol=1e-11)


def test_it_follows_the_flow_to_the_point_that_attracts_where_newton_takes_the_one_that_repels():
    f = lambda z: torch.tanh(3 * z)  # noqa: E731
    z0 = torch.tensor([[0.1], [-0.1], [2.0]], dtype=F64)
    sol = Solve(PseudoTransient(delta=0.3), Stop(rtol=1e-10))(f, z0)
    assert sol.converged.all()
    assert (sol.z.abs() > 0.99).all()
    assert (sol.z.sign() == z0.sign()).all()
    assert Solve(Newton(), Stop(rtol=1e-10))(f, z0).z[:2].abs().max() < 1e-6


def test_near_the_solution_it_converges_faster_than_linearly():
    problem = linear("symmetric", 0.9, B=2, N=3)
    f = lambda z: torch.tanh(problem.f(z))  # noqa: E731
    trace = Solve(PseudoTransient(), Stop(max_iter=200, rtol=1e-13, trace=True))(f, problem.z0()).trace
    ratios = (trace[1:] / trace[:-1]).max(1).values
    assert ratios.min() < 1e-3


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_a_time_step_that_is_none_is_refused(delta):
    with pytest.raises(ValueError, match="delta must be > 0, got"):
        PseudoTransient(delta=delta)
