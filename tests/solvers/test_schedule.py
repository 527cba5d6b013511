"""check_every changes time only; test_every says which evaluations are tested."""

from __future__ import annotations

import pytest
import torch

from deqlm.testing.solvers.counting import Counted, Operations
from deqlm.testing.solvers.problems import exact_rows, linear, normal
from deqlm.testing.solvers.rows import assert_same_rows, same_bits
from deqlm_solvers import SOLVERS, FixedPoint, Solve, Status, StepSolver, Stop
from solvers.problems import parity_chain

GAIN = torch.tensor([0.3, 0.9, 0.95, 0.5, 0.7], dtype=torch.float64)[:, None]
STEP = [name for name in SOLVERS if issubclass(SOLVERS[name], StepSolver)]
SOLVES = [name for name in STEP if "known_answers" in SOLVERS[name].guarantees]


def map_of_five() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(5, 5, 8), GAIN


@pytest.mark.parametrize(("every", "calls"), [(1, 14), (4, 16), (50, 50), (0, 60)])
def test_check_every_says_how_late_the_loop_may_end(every, calls):
    f = Counted(lambda z: 0.5 * z + 1)
    sol = Solve(FixedPoint(), Stop(max_iter=60, rtol=1e-4, check_every=every))(f, torch.zeros(1, 1))
    assert sol.steps.item() == 14
    assert f.calls == calls


@pytest.mark.parametrize(("every", "syncs"), [(1, 40), (4, 10), (40, 1), (0, 0)])
def test_check_every_counts_host_reads(every, syncs):
    problem = linear("symmetric", 1.0)
    with Operations() as operations:
        Solve(FixedPoint(impl="torch"), Stop(max_iter=40, check_every=every))(problem.f, problem.z0())
    assert operations.syncs == syncs


@pytest.mark.parametrize("name", [name for name in SOLVES if not SOLVERS[name].steps_evaluate])
@pytest.mark.parametrize("every", [2, 3, 7])
def test_test_every_ends_at_its_first_tested_passing_point(name, every):
    problem = linear("symmetric", 0.9)
    f = Counted(problem.f)
    sol = Solve(name, Stop(max_iter=300, rtol=1e-6, test_every=every))(f, problem.z0())
    assert sol.converged.all()
    for i, steps in enumerate(sol.steps.tolist()):
        assert (steps - 1) % every == 0
        tested = f.points[:steps:every]
        passing = [bool((problem.f(z) - z)[i].norm() <= 1e-6 * problem.f(z)[i].norm()) for z in tested]
        assert passing.index(True) == len(tested) - 1
        assert same_bits(sol.z[i], tested[-1][i])


def test_the_last_evaluation_is_always_tested():
    f = lambda z: 0.5 * z + 1  # noqa: E731
    for every in (3, 50):
        sol = Solve(FixedPoint(), Stop(max_iter=15, rtol=1e-4, test_every=every))(f, torch.zeros(1, 1))
        assert sol.converged.all()
        assert sol.steps.item() == 15, "it passes from 14 on, which neither schedule tests"


def test_untested_evaluations_are_nan_in_the_trace():
    sol = Solve(FixedPoint(), Stop(max_iter=10, rtol=1e-6, test_every=4, trace=True))(
        lambda z: 0.5 * z + 1, torch.zeros(1, 1)
    )
    assert sol.trace is not None
    assert sol.trace[:, 0].isnan().nonzero()[:, 0].tolist() == [1, 2, 3, 5, 6, 7]


@pytest.mark.parametrize("name", SOLVES)
def test_auto_is_within_tolerance_and_at_most_seven_late(name):
    b, gain = map_of_five()
    for rtol in (1e-3, 1e-8):
        every = Solve(name, Stop(max_iter=400, rtol=rtol))(exact_rows(b, gain), torch.zeros_like(b))
        auto = Solve(name, Stop(max_iter=400, rtol=rtol, test_every="auto"))(exact_rows(b, gain), torch.zeros_like(b))
        assert auto.converged.all()
        fz = exact_rows(b, gain)(auto.z)
        assert ((fz - auto.z).norm(dim=1) <= rtol * fz.norm(dim=1) * (1 + 1e-9)).all()
        late = auto.steps - every.steps
        assert (late >= 0).all()
        assert (late <= 7).all(), f"{name}: {late.tolist()} evaluations late"


@pytest.mark.parametrize("name", STEP)
def test_auto_depends_on_the_row_alone(name):
    b, gain = map_of_five()
    stop = Stop(max_iter=400, rtol=1e-6, test_every="auto")
    plain = Solve(name, stop)(exact_rows(b, gain), torch.zeros_like(b))
    for bad in (torch.nan, 1e25, 0.0):
        other = b.clone()
        other[[0, 2, 4]] = bad
        changed = Solve(name, stop)(exact_rows(other, gain), torch.zeros_like(b))
        assert_same_rows(plain, [1, 3], changed, [1, 3])


def test_auto_is_never_late_for_what_converges_in_one_step():
    f = Counted(lambda z: torch.ones_like(z))
    sol = Solve(FixedPoint(), Stop(test_every="auto"))(f, torch.zeros(2, 3))
    assert sol.converged.all()
    assert f.calls <= 2 + 7


def test_auto_ends_lost_rows():
    f = Counted(lambda z: torch.full_like(z, torch.nan))
    sol = Solve(FixedPoint(), Stop(max_iter=100, test_every="auto"))(f, torch.zeros(2, 3))
    assert (sol.status == Status.NONFINITE).all()
    assert f.calls <= 8
    grow = Counted(lambda z: 10 * z + 1)
    sol = Solve(FixedPoint(), Stop(max_iter=100, test_every="auto"))(grow, torch.zeros(2, 3))
    assert (sol.status == Status.DIVERGED).all()
    assert grow.calls <= 18


def test_auto_solves_the_parity_chain():
    f, truth = parity_chain(2, 64)
    sol = Solve(FixedPoint(), Stop(max_iter=100, test_every="auto"))(f, torch.zeros_like(truth))
    assert sol.converged.all()
    assert torch.equal(sol.z, truth)


def test_auto_reads_the_device_at_most_every_fourth_evaluation():
    with Operations() as operations:
        sol = Solve(FixedPoint(impl="torch"), Stop(max_iter=400, rtol=1e-6, test_every="auto"))(
            lambda z: 0.95 * z + 1, torch.zeros(4, 16)
        )
    assert sol.converged.all()
    assert operations.syncs <= 0.25 * sol.cost.evaluations


def test_the_trace_of_auto_shows_a_row_s_own_tests_only():
    """A neighbour's test does not fill in the trace of a row that was not due."""
    stop = Stop(max_iter=400, rtol=1e-8, test_every="auto", trace=True)
    b, gain = map_of_five()
    together = Solve(FixedPoint(), stop)(exact_rows(b, gain), torch.zeros_like(b))
    for i in range(5):
        alone = Solve(FixedPoint(), stop)(exact_rows(b[i : i + 1], gain[i : i + 1]), torch.zeros_like(b[:1]))
        steps = int(alone.steps[0])
        assert together.trace is not None
        assert alone.trace is not None
        assert same_bits(together.trace[:steps, i], alone.trace[:steps, 0])
