"""Stop(compact="at_once"): the rows of all evaluations are the sum of the rows' steps, a probe, and a last look."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deqlm.testing.solvers.problems import normal
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import Anderson, Broyden, Deer, Fallback, FixedPoint, Newton, Solve, Stop
from solvers.test_compact import SOLVERS, Mixing, Rows, each

AT_ONCE = Stop(max_iter=300, rtol=1e-6, compact="at_once")


def beside(steps: torch.Tensor) -> int:
    """Return the rows of the probe, those that go on when the first ones are done, and all rows at the end."""
    probed = int((steps > steps.min()).sum())
    return probed + steps.shape[0] if probed else 0


@settings(max_examples=40, deadline=None)
@given(
    solver=st.sampled_from(list(SOLVERS.values())),
    gains=st.lists(st.floats(-0.9, 0.9), min_size=1, max_size=7),
    unknowns=st.integers(1, 20),
    test_every=st.sampled_from([1, 2, 5, "auto"]),
    lost=st.booleans(),
)
def test_rows_of_all_evaluations_are_the_sum_of_the_steps(solver, gains, unknowns, test_every, lost):
    gain = torch.tensor(gains, dtype=torch.float64)[:, None]
    b = normal(0, len(gains), unknowns)
    if lost:
        b[0] = torch.nan
    f, twin = Rows(b, gain), Rows(b, gain)
    stop = AT_ONCE.replace(test_every=test_every)
    left = Solve(solver, stop)(f, torch.zeros_like(b))
    stayed = Solve(solver, stop.replace(compact=False))(twin, torch.zeros_like(b))
    assert_same_rows(left, slice(None), stayed, slice(None))
    assert left.cost.row_evaluations == sum(f.log)
    assert sum(f.log) == int(left.steps.sum()) + beside(left.steps)


@each
def test_rows_stay_where_f_mixes_them(solver):
    gain = torch.tensor([[0.2], [0.5], [0.8]], dtype=torch.float64)
    b = normal(0, 3, 8)
    f = Mixing(b, gain)
    sol = Solve(solver, AT_ONCE)(f, torch.zeros_like(b))
    assert sol.converged.all()
    assert len([rows for rows in f.log if rows != 3]) <= 1, "one probe, then never again"


def test_a_fallback_adds_what_looks_at_f():
    gain = torch.tensor([[0.2], [-3.0], [0.5], [-2.0]], dtype=torch.float64)
    f = Rows(normal(0, 4, 8), gain)
    sol = Solve(Fallback("fixed_point", Anderson()), AT_ONCE)(f, torch.zeros(4, 8, dtype=torch.float64))
    assert sol.converged.all()
    more = sum(f.log) - int(sol.steps.sum())
    assert sol.cost.row_evaluations == sum(f.log)
    looks = "two looks at all rows and one at the failed ones; of each attempt, two more"
    assert 0 < more <= 4 + 2 + 3 + 2 + 4 + 2 + 4, looks


@pytest.mark.parametrize("solver", [Newton(), Deer(), Fallback("anderson", Newton())], ids=str)
def test_a_solver_whose_steps_evaluate_f_refuses(solver):
    with pytest.raises(ValueError, match="cannot honour Stop\\(compact='at_once'\\)"):
        Solve(solver, AT_ONCE)


def test_it_is_a_plain_value_and_checked():
    assert Stop.from_dict(AT_ONCE.to_dict()) == AT_ONCE
    assert AT_ONCE.to_dict()["compact"] == "at_once"
    with pytest.raises(ValueError, match="compact must be True, False or 'at_once', got 'at once'"):
        Stop(compact="at once")
    for ignored in ({"check_every": 4}, {"rtol": 0.0}, {"keep": "best_f"}):
        with pytest.raises(ValueError, match="is not used"):
            AT_ONCE.replace(**ignored)
    assert Solve(Broyden(), AT_ONCE).solver == Broyden()
    assert Solve(FixedPoint(), AT_ONCE).stop.compact == "at_once"
