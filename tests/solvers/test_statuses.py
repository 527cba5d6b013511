"""How rows end: each status, and which wins when several hold."""

from __future__ import annotations

import sys

import pytest
import torch

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import linear, spectrum
from deqlm_solvers import SOLVERS, ConvergenceError, FixedPoint, Layout, Solve, Status, StepSolver, Stop
from solvers.problems import parity_chain

STEP = [name for name in SOLVERS if issubclass(SOLVERS[name], StepSolver)]


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_every_status_in_one_batch():
    gain = column(0.5, -1.0, -1.0001, 3.0, 0.5)
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        fz = gain * z + 1
        if calls == 5:
            fz[4] = torch.inf
        return fz

    sol = Solve(FixedPoint(), Stop(max_iter=60, rtol=1e-6, patience=20))(f, torch.zeros(5, 2, dtype=torch.float64))
    want = [Status.CONVERGED, Status.STALLED, Status.STALLED, Status.DIVERGED, Status.NONFINITE]
    assert sol.status.tolist() == want
    assert sol.status.dtype == torch.int8
    assert sol.converged.tolist() == [True, False, False, False, False]
    assert sol.failed.tolist() == [False, True, True, True, True]
    assert sol.steps[3] < 20
    assert sol.steps[4] == 5
    with pytest.raises(ConvergenceError, match=r"rows 1, 2.*STALLED"):
        sol.raise_if_failed()


def test_max_iter_when_nothing_else_holds():
    sol = Solve(FixedPoint(), Stop(max_iter=10, rtol=1e-6))(lambda z: 0.9 * z + 1, torch.zeros(2, 3))
    assert (sol.status == Status.MAX_ITER).all()
    assert (sol.steps == 10).all()


@pytest.mark.parametrize("name", STEP)
def test_a_map_without_a_fixed_point_never_converges(name):
    sol = Solve(name, Stop(max_iter=60))(lambda z: z + 1, torch.zeros(2, 3, dtype=torch.float64))
    assert sol.failed.all()
    assert (sol.residual <= 3**0.5 * (1 + 1e-12)).all()


def test_diverged_is_relative_to_the_first_residual_of_the_row():
    f = Counted(lambda z: 10.0 * z + column(1.0, 1e6))
    sol = Solve(FixedPoint(), Stop(max_iter=100, divergence=1e4))(f, torch.zeros(2, 1, dtype=torch.float64))
    assert (sol.status == Status.DIVERGED).all()
    assert sol.steps.tolist() == [6, 6], "the residual is 10^k times the first one at evaluation k + 1"
    assert f.calls == 6


def test_a_transient_growth_is_not_divergence():
    """A nilpotent map whose residual grows 10^4-fold before it is exactly zero."""
    shift = torch.diag(torch.full((7,), 5.0, dtype=torch.float64), -1)
    problem = torch.zeros(1, 8, dtype=torch.float64)
    problem[0, 0] = 1.0
    sol = Solve(FixedPoint(), Stop(max_iter=20))(lambda z: z @ shift.T + problem, torch.zeros_like(problem))
    assert sol.converged.all()
    assert sol.steps.item() == 9
    assert sol.residual.item() == 0


def test_divergence_can_be_switched_off():
    stop = Stop(max_iter=30, divergence=float("inf"))
    sol = Solve(FixedPoint(), stop)(lambda z: 10.0 * z + 1, torch.zeros(1, 1, dtype=torch.float64))
    assert sol.status.item() == Status.MAX_ITER


def test_a_residual_that_vanishes_with_the_map_is_stalled_with_the_hint_to_set_atol():
    sol = Solve(FixedPoint(), Stop())(lambda z: 0.9 * z, torch.ones(2, 3, dtype=torch.float64))
    assert (sol.status == Status.STALLED).all()
    assert "set atol" in sol.summary()
    assert "STALLED" in sol.summary()
    assert "rows 0, 1" in sol.summary()


@pytest.mark.parametrize("impl", ["torch", "auto"])
def test_with_patience_too(impl):
    sol = Solve(FixedPoint(impl=impl), Stop(patience=10))(lambda z: 0.9 * z, torch.ones(2, 3, dtype=torch.float64))
    assert (sol.status == Status.STALLED).all()
    assert (sol.steps == 11).all(), "the first evaluation is progress, ten more are not"


@pytest.mark.parametrize("impl", ["torch", "auto"])
def test_slow_progress_is_progress(impl):
    """10 % every eleven evaluations is enough for patience=20 and not for patience=3."""
    f = lambda z: 0.99 * z + 1  # noqa: E731
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    enough = Solve(FixedPoint(impl=impl), Stop(max_iter=2000, rtol=1e-6, patience=20))(f, z0)
    assert enough.converged.all()
    short = Solve(FixedPoint(impl=impl), Stop(max_iter=2000, rtol=1e-6, patience=3))(f, z0)
    assert (short.status == Status.STALLED).all()


def test_patience_counts_time_and_never_rows():
    """One stubborn row neither ends the others nor is kept alive by them (torchdeq's defect 4)."""
    gain = column(-1.0, 0.95, 0.5)
    f = lambda z: gain * z + 1  # noqa: E731
    sol = Solve(FixedPoint(), Stop(max_iter=500, rtol=1e-8, patience=30))(f, torch.zeros(3, 2, dtype=torch.float64))
    assert sol.status.tolist() == [Status.STALLED, Status.CONVERGED, Status.CONVERGED]
    alone = Solve(FixedPoint(), Stop(max_iter=500, rtol=1e-8, patience=30))(
        lambda z: 0.95 * z + 1, torch.zeros(1, 2, dtype=torch.float64)
    )
    assert sol.steps[1] == alone.steps[0]


def test_the_parity_chain_is_solved():
    """Its worst-token residual is constant for 255 evaluations, then zero (numerics 3)."""
    f, truth = parity_chain(3, 256)
    stop = Stop(max_iter=300, per="token", trace=True)
    sol = Solve(FixedPoint(), stop)(f, torch.zeros_like(truth), Layout(leaves=((256, 1),)))
    assert sol.converged.all()
    assert torch.equal(sol.z, truth)
    assert sol.trace is not None
    assert (sol.trace[0] == 1).all()
    assert (sol.trace[1:256] == 2).all(), "constant for 255 evaluations"
    assert (sol.trace[256] == 0).all()
    assert (sol.steps == 257).all()


def test_the_parity_chain_by_rows_is_solved_without_patience():
    f, truth = parity_chain(3, 256)
    sol = Solve(FixedPoint(), Stop(max_iter=300))(f, torch.zeros_like(truth))
    assert sol.converged.all()
    assert torch.equal(sol.z, truth)


def test_the_parity_chain_makes_progress_by_its_converged_prefix():
    """With per="token" a growing prefix is progress, so patience does not end the chain; per row it does."""
    f, truth = parity_chain(2, 256)
    layout = Layout(leaves=((256, 1),))
    by_token = Solve(FixedPoint(), Stop(max_iter=300, per="token", patience=5))(f, torch.zeros_like(truth), layout)
    assert by_token.converged.all()
    assert torch.equal(by_token.z, truth)


def test_a_long_transient_with_patience_ends_stalled_and_without_does_not():
    chain = torch.diag(torch.full((63,), 1.0, dtype=torch.float64), -1)
    b = torch.zeros(1, 64, dtype=torch.float64)
    b[0, 0] = 1.0
    f = lambda z: z @ chain.T + b  # noqa: E731
    patient = Solve(FixedPoint(), Stop(max_iter=100, rtol=1e-8))(f, torch.zeros_like(b))
    assert patient.converged.all()
    hasty = Solve(FixedPoint(), Stop(max_iter=100, rtol=1e-8, patience=10))(f, torch.zeros_like(b))
    assert (hasty.status == Status.STALLED).all()


@pytest.mark.parametrize("name", STEP)
def test_finished_rows_are_frozen(name):
    """A row that is done is evaluated at its own point for ever, whatever the others do."""
    gain = column(0.1, 0.97)
    f = Counted(lambda z: gain * z + 1)
    sol = Solve(name, Stop(max_iter=600, rtol=1e-6))(f, torch.zeros(2, 3, dtype=torch.float64))
    assert sol.converged.all()
    # a method that calls f in its steps has other calls between its points
    done = -1 if SOLVERS[name].steps_evaluate else int(sol.steps[0]) - 1
    for point in f.points[done:]:
        assert torch.equal(point[0], sol.z[0])


def test_the_order_of_precedence_is_that_of_the_docstring():
    assert [s.name for s in Status] == ["CONVERGED", "BUDGET", "MAX_ITER", "STALLED", "DIVERGED", "NONFINITE"]
    assert [s.failed for s in Status] == [False, False, True, True, True, True]
    assert all(s.hint for s in Status if s.failed)
    assert not any(s.hint for s in Status if not s.failed)


def test_nonfinite_wins_over_diverged_and_diverged_over_stalled():
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        grown = torch.where(torch.tensor(calls >= 6), 1e9, 1.0) * column(1.0, 1.0)
        return torch.cat([-z[:1] + 1, z[1:] + grown[1:] * torch.where(torch.tensor(calls >= 6), torch.inf, 1.0)])

    sol = Solve(FixedPoint(), Stop(max_iter=30, patience=5))(f, torch.zeros(2, 1, dtype=torch.float64))
    assert sol.status.tolist() == [Status.STALLED, Status.NONFINITE]

    def jump(z):
        return torch.where(z > 4.5, z + 1e10, z + 1)

    both = Solve(FixedPoint(), Stop(max_iter=30, rtol=1e-9, patience=5))(jump, torch.zeros(1, 1, dtype=torch.float64))
    assert both.status.item() == Status.DIVERGED


def test_a_budget_marks_only_rows_that_are_not_finite():
    gain = column(0.5, 1e200)
    sol = Solve(FixedPoint(), Stop(max_iter=6, rtol=0))(lambda z: gain * z + 1, torch.zeros(2, 1, dtype=torch.float64))
    assert sol.status.tolist() == [Status.BUDGET, Status.NONFINITE]
    assert sol.failed.tolist() == [False, True]
    assert sol.z.isfinite().all()
    assert sol.residual_of == "previous"
    assert "previous" in repr(sol) or "before the returned one" in repr(sol)


def test_an_expanding_budget_is_no_failure():
    A = spectrum("symmetric", 1.5, 6)
    sol = Solve(FixedPoint(), Stop(max_iter=30, rtol=0))(lambda z: z @ A.T + 1, torch.zeros(2, 6, dtype=torch.float64))
    assert (sol.status == Status.BUDGET).all()
    sol.raise_if_failed()


def test_summary_counts_rows_per_status_and_shortens_long_lists():
    problem = linear("symmetric", 0.5, B=30)
    failed = Solve(FixedPoint(), Stop(max_iter=3, rtol=1e-9))(problem.f, problem.z0())
    text = failed.summary()
    assert "30 MAX_ITER (rows 0, 1, 2, 3, 4, 5, 6, 7, ... 30 in all) of 30 rows after at most 3 evaluations" in text
    assert "raise max_iter" in text
    solved = Solve(FixedPoint(), Stop())(problem.f, problem.z0())
    assert solved.summary().startswith("solve: 30 CONVERGED of 30 rows")
    assert solved.raise_if_failed() is solved
    assert "evaluations of f on" in repr(solved)


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_where_a_row_stood_half_way_is_its_own_matter(impl):
    """test_every="auto": whether another row was tested at the half may not turn STALLED into MAX_ITER."""
    gain = torch.linspace(0.2, 0.999, 40, dtype=torch.float64)[:, None]
    b = torch.cat([torch.zeros(20, 3), torch.ones(20, 3)]).double()
    z0 = torch.ones(40, 3, dtype=torch.float64)
    for most in (8, 9, 12, 20, 31):
        stop = Stop(max_iter=most, rtol=1e-9, test_every="auto", compact=False)
        whole = Solve(FixedPoint(impl=impl), stop)(lambda z: gain * z + b, z0)
        for row in range(40):
            here = slice(row, row + 1)
            alone = Solve(FixedPoint(impl=impl), stop)(lambda z, h=here: gain[h] * z + b[h], z0[here])
            assert alone.status.item() == whole.status[row].item(), (most, row)


def test_the_largest_number_of_evaluations_ends_all_the_same():
    for impl in ("torch", "cpp"):
        for test_every in (1, "auto"):
            stop = Stop(max_iter=sys.maxsize, test_every=test_every, patience=sys.maxsize)
            sol = Solve(FixedPoint(impl=impl), stop)(lambda z: 0.5 * torch.cos(z), torch.zeros(2, 3))
            assert sol.converged.all()
