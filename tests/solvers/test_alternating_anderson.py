"""Alternating Anderson: between Picard and Anderson, and what the alternation gains."""

import pytest
import torch

from deqlm.testing.solvers.problems import linear
from deqlm_solvers import AlternatingAnderson, Anderson, FixedPoint, Solve, Stop

SLOW = linear("symmetric", 0.99, B=3, N=40)


def solved(solver, **stop):
    return Solve(solver, Stop(**stop))(SLOW.f, SLOW.z0())


def test_a_period_of_one_is_anderson_that_always_mixes_to_the_bit():
    one = solved(AlternatingAnderson(memory=5, period=1), max_iter=20, rtol=0)
    other = solved(Anderson(memory=5, plain_rate=0, impl="torch"), max_iter=20, rtol=0)
    # Anderson fits beta to the scale of the first pair where that is far from 1, which it is not here
    assert torch.equal(one.z, other.z)


@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_it_takes_plain_steps_until_its_turn_comes(damping):
    for steps in (1, 2, 3):
        alternating = solved(AlternatingAnderson(period=4, damping=damping), max_iter=steps, rtol=0).z
        plain = solved(FixedPoint(damping=damping), max_iter=steps, rtol=0).z
        torch.testing.assert_close(alternating, plain, rtol=1e-14, atol=1e-14)
    mixed = solved(AlternatingAnderson(period=4, damping=damping), max_iter=4, rtol=0).z
    assert not torch.allclose(mixed, solved(FixedPoint(damping=damping), max_iter=4, rtol=0).z)


def test_with_a_short_history_it_takes_fewer_evaluations_than_mixing_always_on_a_slow_map():
    solvers = AlternatingAnderson(memory=3, period=6), AlternatingAnderson(memory=3, period=1), FixedPoint()
    now_and_then, always, never = (solved(s, max_iter=3000, rtol=1e-8).steps.max() for s in solvers)
    assert now_and_then < 0.8 * always
    assert now_and_then < 0.3 * never


def test_the_alias_leads_to_it():
    assert Solve("aaa").solver == AlternatingAnderson()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 1}, "memory must be a whole number >= 2, got 1"),
        ({"period": 0}, "period must be a whole number >= 1, got 0"),
        ({"damping": 2.0}, r"damping must be in \(0, 1\], got 2\.0"),
        ({"ridge": 1.0}, r"ridge must be in \[0, 1\), or None, got 1\.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        AlternatingAnderson(**options)
