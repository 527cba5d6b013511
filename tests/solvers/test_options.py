"""Options are fields of frozen dataclasses: checked at birth, plain data on request, never ignored."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import sys

import numpy as np
import pytest
import torch

from deqlm_solvers import SOLVERS, Anderson, Broyden, FixedPoint, Options, Solve, Stop, options
from deqlm_solvers.core.checks import require, suggest, whole

OBJECTS = [
    FixedPoint(damping=0.5, first_damping=1.0),
    Anderson(memory=7, damping=0.3, ridge=1e-8),
    Broyden(memory=3, update="bad", line_search="armijo"),
    Stop(max_iter=3, rtol=1e-6, norm=(1.0, 2.0), per="leaf", test_every="auto"),
    Solve(Anderson(memory=2), Stop(rtol=1e-2)),
]
each = pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: type(thing).__name__)


@each
def test_round_trip_through_json(thing):
    data = json.loads(json.dumps(thing.to_dict()))
    assert type(thing).from_dict(data) == thing


@each
def test_equal_hashable_and_picklable(thing):
    twin = pickle.loads(pickle.dumps(thing))
    assert twin == thing
    assert hash(twin) == hash(thing)
    assert type(thing).__name__ in repr(thing)


@each
def test_fields_cannot_be_assigned(thing):
    name = dataclasses.fields(thing)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, name, None)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_defaults_of_every_solver_round_trip(name):
    cls = SOLVERS[name]
    data = cls().to_dict()
    assert data["name"] == name
    assert json.loads(json.dumps(data)) == data
    assert SOLVERS.make(data) == cls()


@pytest.mark.parametrize("name", list(SOLVERS))
def test_every_solver_refuses_an_unknown_option(name):
    """torchdeq ignores unknown and misspelled options (its defect 17)."""
    with pytest.raises(TypeError, match="got an unknown option 'no_such_option'"):
        SOLVERS[name](no_such_option=1)  # type: ignore[call-arg]


def test_an_unknown_option_names_the_nearest_and_all_known_ones():
    with pytest.raises(TypeError, match=r"'memry': did you mean 'memory'\? known: .*damping.*memory.*ridge"):
        Anderson(memry=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean 'line_search'"):
        SOLVERS.make({"name": "broyden", "linesearch": "armijo"})


def test_positional_options_are_refused():
    with pytest.raises(TypeError):
        Anderson(5)  # type: ignore[misc]


def test_from_dict_leaves_the_caller_s_dict_alone():
    """torchdeq writes into it (its defect 19)."""
    data = {"name": "anderson", "memory": 3}
    assert SOLVERS.make(data) == Anderson(memory=3)
    assert Anderson.from_dict(data).memory == 3
    assert data == {"name": "anderson", "memory": 3}


def test_from_dict_refuses_another_name():
    with pytest.raises(ValueError, match="name must be 'anderson' for Anderson, got 'broyden'"):
        Anderson.from_dict({"name": "broyden"})


def test_from_dict_checks_values():
    with pytest.raises(ValueError, match=r"damping must be in \(0, 1\], got 2"):
        Anderson.from_dict({"damping": 2})


def test_replace_checks_like_a_new_one():
    assert Anderson().replace(memory=3) == Anderson(memory=3)
    with pytest.raises(ValueError, match="memory must be"):
        Anderson().replace(memory=0)
    with pytest.raises(TypeError, match="unknown option 'memori'"):
        Anderson().replace(memori=3)


def test_own_options_inherit_and_nest():
    @options
    class Outer(Options):
        inner: Stop = Stop()
        times: int = 1

    assert Outer(times=2).to_dict() == {"inner": Stop().to_dict(), "times": 2}
    with pytest.raises(TypeError, match="Outer got an unknown option 'time': did you mean 'times'"):
        Outer(time=2)


def test_require_and_suggest_read_well():
    require(True, "memory", 0, ">= 1")
    with pytest.raises(ValueError, match=r"^memory must be >= 1, got 0$"):
        require(False, "memory", 0, ">= 1")
    assert suggest("xyz", []) == "known: (none)"
    assert suggest("andersen", ["anderson", "broyden"]) == "did you mean 'anderson'? known: anderson, broyden"


@pytest.mark.parametrize("number", [2**31, 2**61 + 1, 2**64 + 3])
def test_whole_numbers_are_bounded_by_what_an_index_holds(number):
    for make in (lambda n: Anderson(memory=n), lambda n: Broyden(memory=n)):
        with pytest.raises(ValueError, match=f"memory must be a whole number >= 1 and <= 2147483647, got {number}"):
            make(number)


def test_seeds_and_counts_that_ask_for_no_memory_are_not_bounded():
    whole("seed", 2**64, 0, None)
    with pytest.raises(ValueError, match=r"^seed must be a whole number >= 0, got -1$"):
        whole("seed", -1, 0, None)


@pytest.mark.parametrize("name", ["max_iter", "patience", "test_every", "check_every"])
def test_numbers_of_evaluations_are_bounded_by_what_a_machine_counts(name):
    assert getattr(Stop(**{name: sys.maxsize}), name) == sys.maxsize
    with pytest.raises(ValueError, match=f"{name} must be a whole number >= . and <= {sys.maxsize}, got {2**64}"):
        Stop(**{name: 2**64})


@pytest.mark.parametrize("value", [np.float64(2.0), 2**64])
@pytest.mark.parametrize("name", ["rtol", "atol", "divergence"])
@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_a_tolerance_is_a_double_of_python_whatever_it_was_given_as(name, value, impl):
    stop = Stop(**{name: value})
    assert type(getattr(stop, name)) is float
    assert stop == Stop(**{name: float(value)})
    sol = Solve(FixedPoint(impl=impl), stop)(torch.cos, torch.zeros(2, 1))
    assert sol.converged.all()


HOSTILE = [10**400, -(2**70), 2**64 + 3, math.nan, b"x", np.int64(3), np.bool_(True), torch.tensor(3), 1j, object()]


@pytest.mark.parametrize("make", [Stop, *(SOLVERS[name] for name in SOLVERS)], ids=lambda make: make.__name__)
def test_what_is_no_option_is_refused_or_kept_as_it_is(make):
    """A whole number fits an index, a number fits a double, and everything else raises a plain error."""
    for field in dataclasses.fields(make):
        for value in HOSTILE:
            if field.name in ("jacobian", "blocks", "memory_cap"):
                continue
            try:
                made = getattr(make(**{field.name: value}), field.name)
            except (ValueError, TypeError, KeyError):
                continue
            assert math.isfinite(float(made)), f"{field.name}={value!r}"
            assert type(field.default) is not int, f"{field.name}={value!r} is no whole number of an index"
            assert isinstance(made, int | float), f"{field.name}={value!r}"
