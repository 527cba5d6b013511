"""When a solve ends, what it returns, and what it says about it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import deqlm
from defects.maps import F64, residual
from deqlm import ConvergenceWarning, FixedPoint, Status, Stop
from deqlm.testing.solvers.counting import Counted

SOLVERS = ("fixed_point", "anderson", "broyden")


def ours_keeps_the_best_when_a_later_one_overflows() -> None:
    start = torch.tensor([[1.5]])
    sol = deqlm.solve(torch.square, start, solver="fixed_point", stop=Stop(max_iter=20), on_failure="ignore")
    assert sol.failed.all()
    assert sol.z.isfinite().all()
    torch.testing.assert_close(sol.residual, residual(torch.square, sol.z))


def theirs_spoils_the_best_by_a_later_overflow() -> None:
    from defects import peer

    z, info = peer.run("fixed_point_iter", torch.square, torch.tensor([[1.5]]), max_iter=20)
    assert z.isnan().all()
    assert info["abs_lowest"].isnan().all()
    assert (info["nstep"] == 1).all(), "the first step was the best, and was known to be"


def nan_in_row_one() -> Tensor:
    b = torch.ones(4, 3, dtype=F64)
    b[1] = torch.nan
    return b


def ours_isolates_a_nan_row_and_says_so() -> None:
    b = nan_in_row_one()
    healthy = [0, 2, 3]
    for solver in SOLVERS:
        with torch.no_grad(), pytest.warns(ConvergenceWarning, match="NONFINITE"):
            sol = deqlm.solve(lambda z, b: 0.5 * z + b, torch.zeros_like(b), args=(b,), solver=solver)
        with torch.no_grad():
            alone = deqlm.solve(lambda z: 0.5 * z + 1, torch.zeros_like(b[healthy]), solver=solver)
        assert sol.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED, Status.CONVERGED]
        assert torch.equal(sol.z[healthy], alone.z)
        assert sol.cost.evaluations == alone.cost.evaluations < 20
        assert sol.z.isfinite().all(), "a NaN row returns its last finite point"


def theirs_runs_everyone_to_max_iter_for_a_nan_row() -> None:
    from defects import peer

    b = nan_in_row_one()
    counted = Counted(lambda z: 0.5 * z + b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z, info = peer.run("fixed_point_iter", counted, torch.zeros_like(b), max_iter=50)
    assert counted.calls == 50
    assert z[1].isnan().all()
    assert info["nstep"][1] == 0


def ours_gives_status_and_finite_point_for_nan() -> None:
    for solver in SOLVERS:
        sol = deqlm.solve(lambda z: z * torch.nan, torch.ones(2, 3), solver=solver, on_failure="ignore")
        assert (sol.status == Status.NONFINITE).all()
        assert torch.equal(sol.z, torch.ones(2, 3))


def theirs_returns_nan_without_a_flag() -> None:
    from defects import peer

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z, info = peer.run("broyden", lambda z: z * torch.nan, torch.ones(2, 3), max_iter=50)
    assert z.isnan().all()
    assert (info["nstep"] == 0).all()


def expanding(z: Tensor) -> Tensor:
    return -1.5 * z + 1


def ours_reports_the_residual_of_what_it_returns() -> None:
    for solver in SOLVERS:
        stop = Stop(max_iter=3, rtol=1e-12)
        sol = deqlm.solve(expanding, torch.zeros(1, 2, dtype=F64), solver=solver, stop=stop, on_failure="ignore")
        assert sol.residual_of == "z"
        torch.testing.assert_close(sol.residual, residual(expanding, sol.z))


def theirs_reports_the_residual_of_the_point_before() -> None:
    from defects import peer

    z, info = peer.run("fixed_point_iter", expanding, torch.zeros(1, 2, dtype=F64), max_iter=10)
    torch.testing.assert_close(residual(expanding, z), 1.5 * info["abs_lowest"].double())


def ours_tests_the_undamped_residual() -> None:
    sol = deqlm.solve(
        lambda z: 0.9 * z + 1,
        torch.zeros(1, 2, dtype=F64),
        solver=FixedPoint(damping=0.1),
        stop=Stop(max_iter=5000, rtol=0, atol=1e-3),
    )
    assert sol.converged.all()
    assert residual(lambda z: 0.9 * z + 1, sol.z).item() <= 1e-3


def theirs_loosens_the_tolerance_by_the_damping() -> None:
    from defects import peer

    z, info = peer.run(
        "fixed_point_iter", lambda z: 0.9 * z + 1, torch.zeros(1, 2, dtype=F64), max_iter=5000, tol=1e-3, tau=0.1
    )
    assert info["abs_lowest"].item() < 1e-3
    assert residual(lambda z: 0.9 * z + 1, z).item() > 9e-3


def ours_traces_what_was_evaluated() -> None:
    for solver in SOLVERS:
        f, z0 = (lambda z: 0.5 * z + 1), torch.zeros(1, 2, dtype=F64)
        sol = deqlm.solve(f, z0, solver=solver, stop=Stop(max_iter=50, trace=True))
        assert sol.trace.shape == (int(sol.steps.max()), 1)
        torch.testing.assert_close(sol.trace[0], residual(f, z0))
        torch.testing.assert_close(sol.trace[-1], sol.residual)


def theirs_pads_the_trace() -> None:
    from defects import peer

    _, info = peer.run("fixed_point_iter", lambda z: 0.5 * z + 1, torch.zeros(1, 2, dtype=F64), max_iter=50)
    assert info["nstep"].item() < 20
    assert info["abs_trace"].shape == (1, 51)
    assert info["abs_trace"][0, 0] == 1e8


RATES = torch.tensor([[0.1], [0.97]], dtype=F64)


def scaled(z: Tensor, rates: Tensor) -> Tensor:
    return rates * z + 1


def ours_freezes_finished_rows() -> None:
    z0 = torch.zeros(2, 1, dtype=F64)
    for solver in SOLVERS:
        together = deqlm.solve(scaled, z0, args=(RATES,), solver=solver, stop=Stop(max_iter=500))
        for row in (0, 1):
            rates = RATES[row : row + 1]
            alone = deqlm.solve(scaled, z0[:1], args=(rates,), solver=solver, stop=Stop(max_iter=500))
            assert torch.equal(alone.z[0], together.z[row])
            assert alone.steps[0] == together.steps[row]


def ours_evaluates_each_row_as_long_as_it_needs() -> None:
    rates = torch.full((32, 1), 0.1, dtype=F64)
    rates[7] = 0.97
    rows = 0

    def f(z: Tensor, rates: Tensor) -> Tensor:
        nonlocal rows
        rows += z.shape[0]
        return scaled(z, rates)

    with torch.no_grad():
        z0, stop = torch.zeros(32, 1024, dtype=F64), Stop(max_iter=500)
        sol = deqlm.solve(f, z0, args=(rates,), solver="fixed_point", stop=stop)
    assert sol.converged.all()
    assert sol.cost.row_evaluations == rows
    assert rows <= int(sol.steps.sum()) + 2 * 32, "the steps of every row, one probe, and one look at all at the end"
    assert rows < 32 * int(sol.steps.max()) / 10


def theirs_moves_easy_rows_until_the_hardest_ends() -> None:
    from defects import peer

    z0 = torch.zeros(2, 1, dtype=F64)
    slow, easy = Counted(lambda z: scaled(z, RATES)), Counted(lambda z: scaled(z, RATES[:1]))
    together, _ = peer.run("fixed_point_iter", slow, z0, max_iter=500)
    alone, _ = peer.run("fixed_point_iter", easy, z0[:1], max_iter=500)
    assert not torch.equal(alone[0], together[0])
    assert slow.rows > 20 * easy.rows


def ours_flags_divergence_and_drops_its_gradient() -> None:
    a = torch.tensor(2.0, dtype=F64, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match="DIVERGED"):
        sol = deqlm.solve(lambda z: a * z + 1, torch.zeros(1, 1, dtype=F64), solver="fixed_point")
    assert sol.status.tolist() == [Status.DIVERGED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        sol.z.sum().backward()
    assert a.grad is None or a.grad.item() == 0
    with pytest.raises(deqlm.ConvergenceError, match="DIVERGED"):
        sol.raise_if_failed()
