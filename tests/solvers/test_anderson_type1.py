"""Anderson acceleration of type I: its equations, and the answers that follow from them."""

import pytest
import torch

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import linear
from deqlm_solvers import AndersonTypeI, Solve, Stop

F64 = torch.float64


@pytest.mark.parametrize("kind", ["symmetric", "non_normal", "rotation"])
@pytest.mark.parametrize("unknowns", [1, 2, 4])
def test_a_linear_map_is_solved_once_n_pairs_are_independent(kind, unknowns):
    problem = linear(kind, 1.3, B=3, N=unknowns)
    sol = Solve(AndersonTypeI(), Stop(max_iter=unknowns + 4, rtol=1e-9))(problem.f, problem.z0())
    assert sol.converged.all()


def test_the_point_is_that_whose_residual_the_model_makes_orthogonal_to_the_changes_of_z():
    problem = linear("symmetric", 0.9, B=1, N=9)
    seen = Counted(problem.f)
    Solve(AndersonTypeI(memory=3, damping=0.7), Stop(max_iter=6, rtol=0))(seen, problem.z0())
    z = torch.cat(seen.points[2:6])
    r = problem.f(z) - z
    S, Y = z.diff(dim=0), r.diff(dim=0)
    gamma = torch.linalg.solve(S @ Y.T, S @ r[-1])
    want = z[-1] - gamma @ S + 0.7 * (r[-1] - gamma @ Y)
    again = Counted(problem.f)
    Solve(AndersonTypeI(memory=3, damping=0.7), Stop(max_iter=7, rtol=0))(again, problem.z0())
    torch.testing.assert_close(again.points[6][0], want, rtol=1e-8, atol=1e-9)


def test_a_scalar_row_is_solved_by_the_secant_method():
    seen = Counted(torch.cos)
    Solve(AndersonTypeI(), Stop(max_iter=6, rtol=0))(seen, torch.zeros(1, 1, dtype=F64))
    x = [p.item() for p in seen.points[:2]]
    g = lambda x: torch.cos(torch.tensor(x, dtype=F64)).item() - x  # noqa: E731
    for point in seen.points[2:]:
        x.append(x[-1] - g(x[-1]) * (x[-1] - x[-2]) / (g(x[-1]) - g(x[-2])))
        assert point.item() == pytest.approx(x[-1], abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 0}, "memory must be a whole number >= 1, got 0"),
        ({"damping": 0.0}, r"damping must be in \(0, 1\], got 0\.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        AndersonTypeI(**options)
