"""A point that a Newton method refuses ends no row, counts for none, and no plain step explodes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deqlm.testing.solvers.counting import Counted
from deqlm_solvers import SOLVERS, Solve, Status, Stop
from deqlm_solvers.linalg.line_search import LineSearch
from solvers.classics import generalised_rosenbrock

F64 = torch.float64
NEWTONS = ["newton", "newton_krylov", "dogleg"]
STOP = Stop(max_iter=500, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", NEWTONS)
def test_steps_into_overflow_are_shortened(name, sign):
    """The first step to log(50) leads to exp(49)."""
    b = torch.linspace(0.5, 50, 40, dtype=F64)[:, None]
    sol = Solve(name, STOP)(lambda z: z + sign * (torch.exp(z) - b), torch.zeros_like(b))
    assert sol.converged.all()
    torch.testing.assert_close(sol.z, b.log(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NEWTONS)
def test_steps_out_of_the_domain_are_shortened(name):
    """From e on Newton's step for log(z) = 0 leads to z <= 0, where f is NaN."""
    z0 = torch.linspace(1.5, 8, 20, dtype=F64)[:, None]
    sol = Solve(name, STOP)(lambda z: z - torch.log(z), z0)
    assert sol.converged.all()
    torch.testing.assert_close(sol.z, torch.ones_like(z0), rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", NEWTONS)
def test_a_start_that_is_not_finite_ends_its_row_at_once(name):
    f = Counted(lambda z: torch.where(z > 1, torch.nan, 0.5 * z))
    sol = Solve(name, STOP)(f, torch.tensor([[2.0]], dtype=F64))
    assert sol.status.tolist() == [Status.NONFINITE]
    assert f.calls == 1


@pytest.mark.parametrize("name", ["newton", "newton_krylov"])
def test_a_row_with_nothing_left_to_try_ends(name):
    """f is finite at the start and at no other point."""
    f = Counted(lambda z: torch.where(z == 2, 3 * z, torch.nan))
    sol = Solve(name, Stop(max_iter=2000))(f, torch.tensor([[2.0]], dtype=F64))
    assert sol.status.tolist() == [Status.NONFINITE]
    assert sol.z.tolist() == [[2.0]]
    assert f.calls < 100


@pytest.mark.parametrize("name", NEWTONS)
def test_no_accepted_point_explodes(name):
    """A curved valley in ten unknowns, where both line searches fail and plain steps grow a thousandfold each."""
    f = generalised_rosenbrock(10)
    sol = Solve(name, Stop(max_iter=600, rtol=1e-8, trace=True))(f.map, f.z0)
    assert sol.status.item() != Status.DIVERGED
    assert sol.trace is not None
    assert sol.residual <= sol.trace[0]


def column(value: float) -> Tensor:
    return torch.full((1, 1), value, dtype=F64)


ALL = torch.ones(1, 1, dtype=torch.bool)


def searching(norm: float = 1.0) -> LineSearch:
    search = LineSearch(column(0))
    search.judge(ALL, column(norm))
    search.start(ALL, column(norm), column(0))
    return search


@pytest.mark.parametrize("norm", [math.nan, math.inf, 1e9, 2.0])
def test_a_trial_that_is_worse_is_shortened(norm):
    search = searching()
    assert not search.final()
    passes, given_up = search.judge(ALL, column(norm))
    assert not passes
    assert not given_up
    assert 0.1 <= search.length.item() <= 0.5
    assert not search.final()


def test_a_search_ends_early_unless_its_trials_are_wild():
    trials = {}
    for norm in (1.0, math.nan):
        search, trials[norm] = searching(), 0
        given_up = ~ALL
        while not given_up:
            passes, given_up = search.judge(ALL, column(norm))
            assert not passes
            trials[norm] += 1
        assert search.length.item() <= (search.SHORTEST if norm == 1 else search.LEAST)
    assert trials[1.0] <= 10 < trials[math.nan] <= 13


def test_a_trial_is_shortened_to_the_minimum_of_the_parabola():
    """From ||r||^2 = 1 with slope -2 to 4 at length 1: the least value is at 1 / 5."""
    search = searching()
    search.judge(ALL, column(2.0))
    assert search.length.item() == pytest.approx(0.2)


def test_a_walk_is_judged_by_where_it_began():
    """A row that walks from a residual of 100 may go on with one of 500."""
    search = searching()
    search.fail(ALL, column(100.0))
    search.take_plain_step(ALL)
    assert search.judge(ALL, column(500.0))[0]


@pytest.mark.parametrize("slope", [0.5, 3.0, 1e3, 1e8])
def test_a_plain_step_never_grows_the_residual_tenfold(slope):
    """Where ||r|| grows by ``slope`` times the length, one shorter step is enough; the next plain step is as long."""
    search = searching()
    search.fail(ALL, column(1))
    search.take_plain_step(ALL)
    refused = 0
    while not search.judge(ALL, column(1 + slope * search.length.item()))[0]:
        refused += 1
    assert refused == (1 if slope > 9 else 0)
    assert 1 + slope * search.length.item() <= search.GROWTH
    taken = search.length.item()
    search.take_plain_step(ALL)
    assert search.length.item() == taken


def test_a_walk_begins_with_whole_steps_again():
    search = searching()
    search.fail(ALL, column(1))
    search.take_plain_step(ALL)
    search.judge(ALL, column(1e6))
    assert search.length.item() < 1e-5
    search.fail(ALL, column(1))
    search.take_plain_step(ALL)
    assert search.length.item() == 1
    assert search.walk.item() == 1, "twice as many steps"


def test_a_plain_step_that_is_never_tame_is_the_last():
    search = searching()
    search.fail(ALL, column(1))
    search.take_plain_step(ALL)
    for _ in range(13):
        if search.final():
            break
        assert not search.judge(ALL, column(math.nan))[0]
    assert search.final()
    assert search.judge(ALL, column(math.nan))[0], "whoever loops decides what becomes of it"


@pytest.mark.parametrize("name", SOLVERS)
def test_advice_is_a_sentence_for_each_failure(name):
    try:
        solver = SOLVERS[name]()
    except ImportError as error:
        pytest.skip(str(error))
    for status in Status:
        assert bool(solver.advice(status)) == status.failed


@pytest.mark.parametrize("name", [*NEWTONS, "fallback"])
def test_advice_fits_methods_that_need_no_damping(name):
    for status in Status:
        text = SOLVERS[name]().advice(status)
        assert "damp" not in text
        assert "Anderson" not in text
