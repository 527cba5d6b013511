"""What a solve costs besides f: operations, host syncs, and true counts. Never a time."""

from __future__ import annotations

import pytest
import torch

from deqlm.testing.solvers.counting import Counted, Operations, geometric, per_evaluation
from deqlm.testing.solvers.problems import linear, tanh_layer
from deqlm_solvers import Anderson, Broyden, FixedPoint, Solve, Solver, Stop

Z0 = torch.zeros(4, 16)
ENDLESS = Stop(rtol=0, atol=1e-300)
BUDGET = Stop(rtol=0)
SOLVERS = {
    "picard": FixedPoint(impl="torch"),
    "anderson": Anderson(impl="torch"),
    "broyden": Broyden(impl="torch"),
    "armijo": Broyden(line_search="armijo", impl="torch"),
}


def costs(solver: Solver, stop: Stop, rate: float = 0.98) -> tuple[float, float]:
    return per_evaluation(lambda f, K: Solve(solver, stop.replace(max_iter=K))(f, Z0), geometric(rate, 4, 16, 80))


@pytest.mark.parametrize(
    ("solver", "stop", "most"),
    [
        (FixedPoint(impl="torch"), BUDGET, 2),
        (FixedPoint(damping=0.8, impl="torch"), BUDGET, 3),
        (FixedPoint(impl="torch"), ENDLESS, 50),
        (FixedPoint(impl="torch"), ENDLESS.replace(test_every=8), 7.2),
        (FixedPoint(impl="torch"), ENDLESS.replace(patience=50), 61),
        (FixedPoint(impl="torch"), ENDLESS.replace(trace=True), 52),
        (Anderson(impl="torch"), BUDGET, 171),
        (Anderson(memory=1, impl="torch"), ENDLESS, 50),
        (Broyden(impl="torch"), BUDGET, 113),
        (Broyden(update="bad", impl="torch"), ENDLESS, 161),
        (Broyden(line_search="armijo", impl="torch"), ENDLESS, 199),
    ],
    ids=[
        *("picard_budget", "damped_budget", "picard", "picard_every_8", "picard_patience", "picard_trace"),
        *("anderson_budget", "anderson_1", "broyden_budget", "broyden_bad", "broyden_armijo"),
    ],
)
def test_operations_per_evaluation(solver, stop, most):
    """Limits are what was measured: ATen operations on a CPU, views and those of f left out."""
    operations, _ = costs(solver, stop)
    assert operations <= most


def test_the_predicted_schedule_is_cheap():
    """A quarter of the operations of testing every evaluation, and a quarter of a sync."""
    operations, syncs = costs(FixedPoint(impl="torch"), ENDLESS.replace(test_every="auto"))
    assert syncs <= 0.25
    assert operations <= 11.2


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_host_syncs_per_evaluation(solver):
    assert costs(solver, ENDLESS)[1] == 1
    assert costs(solver, ENDLESS.replace(check_every=10))[1] == pytest.approx(0.1)
    assert costs(solver, ENDLESS.replace(check_every=0))[1] == 0
    assert costs(solver, ENDLESS.replace(test_every=4))[1] == pytest.approx(0.25, abs=0.02)
    assert costs(solver, BUDGET)[1] == 0


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_the_batch_does_not_change_the_number_of_operations(solver):
    for rows in (1, 50):
        z0 = torch.zeros(rows, 16)
        run = lambda f, K, z0=z0: Solve(solver, ENDLESS.replace(max_iter=K))(f, z0)  # noqa: E731
        assert per_evaluation(run, geometric(0.98, rows, 16, 40)) == costs(solver, ENDLESS)


def test_a_whole_budget_reads_nothing_from_the_device():
    problem = linear("symmetric", 0.5)
    for solver in (FixedPoint(), Anderson(), Broyden()):
        with Operations() as operations:
            Solve(solver, Stop(max_iter=6, rtol=0))(problem.f, problem.z0())
        assert operations.syncs == 0


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize(
    "stop",
    [
        Stop(),
        Stop(max_iter=7),
        Stop(max_iter=7, rtol=0),
        Stop(max_iter=200, check_every=10),
        Stop(max_iter=200, test_every="auto"),
        Stop(max_iter=200, test_every=3),
        Stop(max_iter=50, keep="best_f"),
        Stop(max_iter=50, patience=3),
        Stop(max_iter=30, check_every=0),
    ],
    ids=lambda stop: "-".join(f"{k}={v}" for k, v in stop.to_dict().items() if v != getattr(Stop(), k)) or "default",
)
def test_counts_are_those_of_a_counting_map(solver, stop):
    for problem in (linear("symmetric", 0.8), tanh_layer(3.0)):
        f = Counted(problem.f)
        sol = Solve(solver, stop)(f, problem.z0())
        look = int(bool(sol.converged.any() and sol.failed.any()))
        assert sol.cost.evaluations == f.calls <= stop.max_iter + look
        assert sol.cost.row_evaluations == f.rows == f.calls * len(problem.truth)
        assert sol.cost.vjps == sol.cost.jvps == 0
        assert (sol.steps <= f.calls).all()
        if stop.check_every == 1:
            assert f.calls - look <= sol.steps.max() <= f.calls, "it ends with its last row, or a look at all rows"
