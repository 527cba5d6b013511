"""The reversible iteration: its steps, how they are undone, and how fast it is."""

import pytest
import torch

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import linear
from deqlm_solvers import ReversibleIteration, Solve, Stop

F64 = torch.float64


@pytest.mark.parametrize("beta", [0.3, 0.8])
def test_it_is_the_iteration_of_two_states(beta):
    problem = linear("non_normal", 0.8, B=3, N=5)
    y = z = problem.z0()
    for _ in range(3):
        y = (1 - beta) * y + beta * problem.f(z)
        z = (1 - beta) * z + beta * problem.f(y)
    sol = Solve(ReversibleIteration(beta=beta), Stop(max_iter=6, rtol=0))(problem.f, problem.z0())
    torch.testing.assert_close(sol.z, z, rtol=1e-13, atol=1e-13)


def test_every_step_can_be_undone_with_the_growth_of_rounding_that_is_told():
    beta, problem = 0.5, linear("symmetric", 0.9, B=1, N=8)
    for dtype in (torch.float32, F64):
        seen = Counted(problem.f)
        Solve(ReversibleIteration(beta=beta), Stop(max_iter=20, rtol=0))(seen, problem.z0(dtype))
        after, here = seen.points[19], seen.points[18]
        for k in range(17, -1, -1):
            after, here = here, (after - beta * problem.f(here)) / (1 - beta)
            most = 8 * torch.finfo(dtype).eps * (1 - beta) ** -(18 - k)
            assert (here - seen.points[k]).norm() <= most * seen.points[18].norm()


@pytest.mark.parametrize(("beta", "rate"), [(0.8, 0.934), (0.5, 0.967)])
def test_the_rate_is_that_of_the_larger_root(beta, rate):
    stop, z0 = Stop(max_iter=200, rtol=1e-15, trace=True), torch.zeros(1, 1, dtype=F64)
    sol = Solve(ReversibleIteration(beta=beta), stop)(lambda z: 0.9 * z + 1, z0)
    assert ((sol.trace[150] / sol.trace[50]) ** 0.01).item() == pytest.approx(rate, abs=1e-3)


@pytest.mark.parametrize("beta", [0.0, 1.0, 1.5])
def test_a_beta_that_cannot_be_undone_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta must be in \(0, 1\), got"):
        ReversibleIteration(beta=beta)
