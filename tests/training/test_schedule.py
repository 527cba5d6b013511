"""The rate is a function of the step: known values, bounds, and no option that has no effect."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqlm.training import Schedule


def test_warm_up_ends_at_the_highest_rate():
    rate = Schedule(lr=0.8, warm_up=4)
    assert [rate.at(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_linear_and_cosine_come_down_to_the_floor():
    linear = Schedule(lr=1.0, warm_up=10, decay="linear", steps=110, floor=0.1)
    cosine = linear.replace(decay="cosine")
    for step, done in ((10, 0.0), (35, 0.25), (60, 0.5), (110, 1.0), (10**6, 1.0), (2**40, 1.0)):
        assert linear.at(step) == pytest.approx(1 - 0.9 * done)
        assert cosine.at(step) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def test_a_square_root_begins_where_it_is_told():
    rate = Schedule(lr=1.0, warm_up=2, decay="square_root", steps=14, floor=0.2, begin=10)
    assert [rate.at(step) for step in (1, 2, 10)] == [1, 1, 1]
    assert rate.at(11) == pytest.approx(0.2 + 0.8 * (1 - math.sqrt(1 / 4)))
    assert rate.at(14) == rate.at(99) == pytest.approx(0.2)
    for begin in (1, 14):
        with pytest.raises(ValueError, match="begin must be"):
            rate.replace(begin=begin)
    with pytest.raises(ValueError, match="begin must be None where decay='constant'"):
        Schedule(lr=1.0, begin=3)


@given(
    st.integers(0, 20), st.integers(21, 60), st.floats(0, 1), st.sampled_from(["linear", "cosine"]), st.integers(0, 80)
)
def test_it_goes_up_then_down_and_stays_in_bounds(warm_up, steps, floor, decay, step):
    rate = Schedule(lr=0.3, warm_up=warm_up, decay=decay, steps=steps, floor=floor)
    here, there = rate.at(step), rate.at(step + 1)
    assert 0 <= here <= 0.3 * (1 + 1e-12)
    assert there > here if step + 1 < warm_up else step < warm_up or there <= here
    assert Schedule.from_dict(json.loads(json.dumps(rate.to_dict()))).at(step) == here


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0}, "lr must be > 0"),
        ({"lr": float("nan")}, "lr must be > 0"),
        ({"warm_up": -1}, "warm_up must be a whole number >= 0"),
        ({"decay": "exponential", "steps": 9}, "decay must be 'constant'"),
        ({"decay": "cosine"}, "steps must be a whole number >= 1, got None"),
        ({"decay": "linear", "steps": 4, "warm_up": 4}, "steps must be > warm_up=4 .* got 4"),
        ({"steps": 9}, "steps must be None where decay='constant'"),
        ({"floor": 0.1}, "floor must be 0 where decay='constant'"),
        ({"decay": "linear", "steps": 4, "floor": 2}, r"floor must be in \[0, 1\]"),
    ],
)
def test_bad_values_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"lr": 0.1, **given})
