"""Damped Picard iteration."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import linear, tanh_layer
from deqlm.testing.solvers.rows import same_bits
from deqlm_solvers import FixedPoint, Solve, Status, Stop
from solvers.problems import parity_chain


@pytest.mark.parametrize("damping", [1.0, 0.8, 0.3])
def test_its_points_are_those_of_the_recurrence(damping):
    problem = tanh_layer(0.9)
    f = Counted(problem.f)
    Solve(FixedPoint(damping=damping), Stop(max_iter=12, rtol=0))(f, problem.z0())
    z = problem.z0()
    for point in f.points:
        assert torch.allclose(point, z, rtol=1e-13, atol=1e-15)
        z = z + damping * (problem.f(z) - z)


def test_full_steps_are_f_itself_to_the_bit():
    problem = tanh_layer(0.9)
    f = Counted(problem.f)
    sol = Solve(FixedPoint(), Stop(max_iter=12, rtol=0))(f, problem.z0())
    for before, after in pairwise(f.points):
        assert same_bits(after, problem.f(before))
    assert same_bits(sol.z, problem.f(f.points[-1]))


def test_first_damping_is_for_the_first_step_only():
    problem = linear("symmetric", 0.5)
    f = Counted(problem.f)
    Solve(FixedPoint(damping=0.8, first_damping=1.0), Stop(max_iter=4, rtol=0))(f, problem.z0())
    points = f.points
    assert same_bits(points[1], problem.f(points[0]))
    for before, after in pairwise(points[1:]):
        assert torch.allclose(after, before + 0.8 * (problem.f(before) - before), rtol=1e-14)


def test_damping_settles_a_two_cycle():
    f = lambda z: -1.2 * z + 1  # noqa: E731
    z0 = torch.zeros(2, 3, dtype=torch.float64)
    assert Solve(FixedPoint(), Stop(max_iter=200))(f, z0).failed.all()
    assert Solve(FixedPoint(damping=0.5), Stop(max_iter=200))(f, z0).converged.all()


@pytest.mark.parametrize("value", [0, -0.5, 1.1, float("nan")])
def test_a_damping_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=r"^damping must be in \(0, 1\], got"):
        FixedPoint(damping=value)
    with pytest.raises(ValueError, match=r"^first_damping must be in \(0, 1\], or None, got"):
        FixedPoint(first_damping=value)


def test_a_causal_chain_takes_as_many_evaluations_as_it_is_long():
    f, truth = parity_chain(2, 256)
    sol = Solve(FixedPoint(), Stop(max_iter=300))(f, torch.zeros_like(truth))
    assert sol.converged.all()
    assert torch.equal(sol.z, truth)
    assert (sol.residual == 0).all()
    assert (sol.steps == 257).all()
    short = Solve(FixedPoint(), Stop(max_iter=200))(f, torch.zeros_like(truth))
    assert not short.converged.any()
    assert (short.status == Status.MAX_ITER).all()


def test_a_damping_that_decays_is_that_written_out():
    problem = linear("non_normal", 0.8, B=2, N=5)
    sol = Solve(FixedPoint(damping=0.9, decay=0.5), Stop(max_iter=5, rtol=0))(problem.f, problem.z0())
    z = problem.z0()
    for k in range(5):
        z = z + 0.9 * (1 + k) ** -0.5 * (problem.f(z) - z)
    torch.testing.assert_close(sol.z, z, rtol=1e-13, atol=1e-13)


def test_a_map_that_jumps_settles_under_a_decay_and_not_without():
    f = lambda z: torch.where(z > 0.3, -1.0, 1.0).to(z)  # noqa: E731 - no fixed point: averages settle at the jump
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    ends = [Solve(FixedPoint(decay=d), Stop(max_iter=400, rtol=0))(f, z0).z.item() for d in (0.0, 1.0)]
    assert abs(ends[0] - 0.3) > 0.5
    assert abs(ends[1] - 0.3) < 0.01


def test_a_decay_is_refused_by_the_compiled_step_and_out_of_range():
    with pytest.raises(ValueError, match="impl='cpp' is not possible here"):
        Solve(FixedPoint(decay=0.5, impl="cpp"))(torch.cos, torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 2\.0"):
        FixedPoint(decay=2.0)
