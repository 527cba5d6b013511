"""DF-SANE: what it solves, what it refuses, and what it costs."""

import pytest
import torch

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import linear
from deqlm_solvers import DFSane, FixedPoint, Solve, Status, Stop

F64 = torch.float64


def test_it_solves_maps_that_expand_in_one_direction_and_the_other():
    stop, z0 = Stop(rtol=1e-9, max_iter=60), torch.zeros(2, 3, dtype=F64)
    for eigenvalue in (-3.0, -1.5, 0.5, 1.5, 4.0):
        sol = Solve(DFSane(), stop)(lambda z, e=eigenvalue: e * z + 1, z0)
        assert sol.converged.all(), eigenvalue
        torch.testing.assert_close(sol.z, torch.full((2, 3), 1 / (1 - eigenvalue), dtype=F64), rtol=1e-7, atol=0)


def test_many_unknowns_with_eigenvalues_below_minus_one():
    problem = linear("symmetric", 0.9, B=2, N=300)
    f = lambda z: 3 * problem.f(z) - 2 * z  # noqa: E731 - the same root, eigenvalues from -4.7 to .7
    sol = Solve(DFSane(), Stop(rtol=1e-8, max_iter=400))(f, problem.z0())
    assert sol.converged.all()
    assert not Solve(FixedPoint(), Stop(rtol=1e-8, max_iter=400))(f, problem.z0()).converged.any()


def test_the_second_step_has_the_spectral_length():
    problem = linear("non_normal", 0.8, B=3, N=5)
    seen = Counted(problem.f)
    Solve(DFSane(), Stop(max_iter=3, rtol=0))(seen, problem.z0())
    z0, z1, z2 = seen.points
    s, y = z1 - z0, (z1 - problem.f(z1)) - (z0 - problem.f(z0))
    sigma = s.square().sum(1, keepdim=True) / (s * y).sum(1, keepdim=True)
    torch.testing.assert_close(z2, z1 + sigma * (problem.f(z1) - z1), rtol=1e-12, atol=1e-12)


def test_a_trial_that_fails_is_followed_by_its_opposite_and_then_by_shorter_ones():
    f = lambda z: z + torch.where(z.abs() > 0.05, 1e6 * torch.ones_like(z), 1 + z)  # noqa: E731
    seen = Counted(f)
    Solve(DFSane(), Stop(max_iter=5, rtol=0))(seen, torch.zeros(1, 1, dtype=F64))
    points = [p.item() for p in seen.points]
    assert points[:3] == [0.0, 1.0, -1.0]
    assert points[3:] == pytest.approx([0.1, -0.1])


def test_points_that_are_not_finite_are_refused_and_the_row_goes_on():
    f = lambda z: torch.where(z > 3, torch.nan, z - 4 * (z - 2))  # noqa: E731 - the plain step leads to 8
    sol = Solve(DFSane(), Stop(rtol=1e-8))(f, torch.zeros(1, 1, dtype=F64))
    assert sol.converged.all()
    assert sol.z.item() == pytest.approx(2.0, abs=1e-6)


def test_a_start_that_is_not_finite_ends_its_row_alone():
    z0 = torch.tensor([[0.0], [torch.nan]], dtype=F64)
    sol = Solve(DFSane(), Stop(rtol=1e-8))(lambda z: 0.5 * z + 1, z0)
    assert sol.status.tolist() == [Status.CONVERGED, Status.NONFINITE]


@pytest.mark.parametrize("window", [0, 1.5, True])
def test_a_window_that_is_no_count_is_refused(window):
    with pytest.raises(ValueError, match="window must be a whole number >= 1"):
        DFSane(window=window)
