"""A history is never longer than a solve can use."""

from __future__ import annotations

import pytest
import torch

from deqlm.testing.solvers.problems import linear, tanh_layer
from deqlm_solvers import Anderson, Broyden, FixedPoint, Solve, Solver, Stop, forecast_solve
from deqlm_solvers.native import library

IMPLS = ["torch", pytest.param("cpp", marks=pytest.mark.skipif(library.load().library is None, reason="not built"))]
HUGE = 10**9


@pytest.mark.parametrize(
    ("solver", "unknowns", "max_iter", "memory"),
    [
        (Anderson(), 100, 100, 12),
        (Anderson(), 3, 100, 4),
        (Anderson(), 100, 5, 6),
        (Anderson(), 0, 100, 2),
        (Anderson(memory=HUGE), 6, 100, 7),
        (Broyden(), 100, 100, 20),
        (Broyden(), 3, 100, 12),
        (Broyden(), 1, 100, 8),
        (Broyden(), 0, 100, 8),
        (Broyden(), 100, 5, 5),
        (Broyden(memory=3), 1, 100, 3),
        (Broyden(memory=HUGE), 6, 100, 24),
    ],
)
def test_how_much_is_kept(solver, unknowns, max_iter, memory):
    fitted = solver.fitted(unknowns, max_iter)
    assert fitted.memory == memory
    assert (fitted is solver) == (memory == solver.memory)


def test_a_rule_without_history_stays_what_it_is():
    solver = FixedPoint()
    assert solver.fitted(1, 1) is solver


def test_one_point_of_memory_is_damped_picard_iteration():
    assert Anderson(memory=1, damping=0.5, impl="torch").fitted(4, 10) == FixedPoint(damping=0.5, impl="torch")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("N", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_anderson_leaves_out_takes_part_in_no_mix(monkeypatch, impl, N, dtype):
    """Pairs beyond N depend on the newer ones, where the window ends; rounding may move that by one."""
    solver, stop = Anderson(impl=impl, plain_rate=0.0), Stop(max_iter=40, rtol=1e-5)
    for problem in (linear("non_normal", 0.9, B=5, N=N), tanh_layer(0.9, B=5, N=N)):
        fitted = Solve(solver, stop)(problem.f, problem.z0(dtype))
        with monkeypatch.context() as patch:
            patch.setattr(Anderson, "fitted", lambda self, unknowns, max_iter: self)
            whole = Solve(solver, stop)(problem.f, problem.z0(dtype))
        assert fitted.converged.all()
        assert (fitted.steps - whole.steps).abs().max() <= 1
        torch.testing.assert_close(fitted.z, whole.z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("solver", [Anderson(memory=HUGE), Broyden(memory=HUGE), Broyden(memory=HUGE, update="bad")])
def test_a_memory_beyond_all_bounds_takes_no_more_than_is_useful(solver: Solver, impl):
    f = lambda z: 0.5 * z.cos()  # noqa: E731
    sol = Solve(solver.replace(impl=impl), Stop())(f, torch.zeros(2, 3))
    assert sol.converged.all()
    total = forecast_solve(Solve(solver.replace(impl=impl)), rows=2, unknowns=3).total
    assert total is not None
    assert total < 2**20


@pytest.mark.parametrize("solver", [Anderson(memory=40), Broyden(memory=40)])
def test_forecasts_know_it(solver):
    short = forecast_solve(Solve(solver, Stop(max_iter=6)), rows=4, unknowns=4096)
    assert (
        short.parts["history"] == forecast_solve(Solve(solver.fitted(4096, 6)), rows=4, unknowns=4096).parts["history"]
    )
    assert short.parts["history"] < forecast_solve(Solve(solver), rows=4, unknowns=4096).parts["history"] / 5


def test_many_problems_of_one_unknown_take_little():
    """Twenty pairs of scalars took 1.9 GiB, nearly all of it for their products."""
    for solver in (Anderson(), Broyden()):
        total = forecast_solve(Solve(solver), rows=300_000, unknowns=1).total
        assert total is not None
        assert total < 2**29
