"""The contract suite catches wrong solvers: each one here breaks one promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deqlm.testing import check_solver, solver_checks
from deqlm.testing.solvers.cost import OPERATIONS
from deqlm_solvers import GUARANTEES, Cost, Evaluation, Map, Solver, Status, StepSolver, options
from deqlm_solvers.loop.loop import run


@options
class Right(StepSolver):
    """Damped Picard, right in everything."""

    guarantees = frozenset(GUARANTEES)

    def init(self, z: Tensor) -> Any:
        return None

    def step(self, f: Map, at: Evaluation, state: Any) -> tuple[Tensor, Any]:
        return at.z + 0.75 * at.r, state


@options
class Boasts(Right):
    guarantees = frozenset({"always right"})


class HasNoOptions(Right):
    pass


@options
class Raises(Right):
    def step(self, f, at, state):
        raise ZeroDivisionError("no step from here")


@options
class MixesRows(Right):
    def step(self, f, at, state):
        return at.z + 0.75 * at.r * (1 + 1e-12 * at.r.nan_to_num().norm()), state


@options
class StepsByBatchSize(Right):
    def step(self, f, at, state):
        return at.z + (0.75 if len(at.z) > 1 else 0.7500001) * at.r, state


@options
class LetsNaNThrough(Right):
    def step(self, f, at, state):
        return at.z + 0.75 * at.r + 0 * at.r.sum(0), state


@options
class LiesAboutResidual(Right):
    def solve(self, f, z0, stop, frame):
        sol = run(self, f, z0, stop, frame)
        return sol.replace(residual=0.5 * sol.residual)


@options
class ClaimsToConverge(Right):
    def solve(self, f, z0, stop, frame):
        sol = run(self, f, z0, stop, frame)
        return sol.replace(status=torch.full_like(sol.status, int(Status.CONVERGED)))


@options
class ReturnsTheNextPoint(Right):
    def solve(self, f, z0, stop, frame):
        sol = run(self, f, z0, stop, frame)
        return sol.replace(z=f(sol.z))


@options
class CallsInSecret(Right):
    def step(self, f, at, state):
        return f(at.z) + 0 * at.r, state


@options
class ForgetsCounts(Right):
    def solve(self, f, z0, stop, frame):
        return run(self, f, z0, stop, frame).replace(cost=Cost())


@options
class StopsEarly(Right):
    def solve(self, f, z0, stop, frame):
        sol = run(self, f, z0, stop.replace(rtol=1e-3 if stop.rtol else 0.0), frame)
        return sol.replace(status=torch.full_like(sol.status, int(Status.CONVERGED)))


@options
class LooksAtCheckEvery(Right):
    def solve(self, f, z0, stop, frame):
        stricter = stop.replace(rtol=stop.rtol / max(1, stop.check_every))
        return run(self, f, z0, stricter, frame)


@options
class WidensHalf(Right):
    def solve(self, f, z0, stop, frame):
        return run(self, lambda z: f(z.to(z0.dtype)).float(), z0.float(), stop, frame)


@options
class EndsABudget(Right):
    def solve(self, f, z0, stop, frame):
        return run(self, f, z0, stop.replace(max_iter=max(1, stop.max_iter - 1)), frame)


@options
class KeepsTheLastPointOfABudget(Right):
    def solve(self, f, z0, stop, frame):
        sol = run(self, f, z0, stop, frame)
        shorter = stop.replace(max_iter=max(1, stop.max_iter - 1))
        return sol.replace(z=run(self, f, z0, shorter, frame).z)


@options
class ReadsTheDevice(Right):
    def step(self, f, at, state):
        assert float(at.r.abs().max()) != -1
        return at.z + 0.75 * at.r, state


@options
class Wasteful(Right):
    def step(self, f, at, state):
        r = at.r
        for _ in range(max(OPERATIONS.values())):
            r = r * 1
        return at.z + 0.75 * r, state


@options
class CutsTheGraph(Right):
    def step(self, f, at, state):
        return at.z + 0.75 * at.r.detach(), state


@options
class IgnoresTheNorm(Right):
    def solve(self, f, z0, stop, frame):
        return run(self, f, z0, stop.replace(norm="l2"), frame)


@options
class KeepsNoTrace(Right):
    def solve(self, f, z0, stop, frame):
        return run(self, f, z0, stop, frame).replace(trace=None)


@options
class WritesItsStart(Right):
    def solve(self, f, z0, stop, frame):
        sol = run(self, f, z0, stop, frame)
        z0.copy_(sol.z)
        return sol


@options
class HandsOutItsGraph(Right):
    def solve(self, f, z0, stop, frame):
        sol = run(self, f, z0, stop, frame)
        return sol.replace(z=sol.z + 0 * f(sol.z))


@options
class CallsNaNSlow(Right):
    def solve(self, f, z0, stop, frame):
        sol = run(self, f, z0, stop, frame)
        return sol.replace(status=sol.status.masked_fill(sol.status == int(Status.NONFINITE), int(Status.MAX_ITER)))


@options
class NeedsARow(Right):
    def init(self, z):
        return z.abs().max()


CAUGHT = [
    (IgnoresTheNorm, "declared_fields_of_stop_are_obeyed"),
    (KeepsNoTrace, "declared_fields_of_stop_are_obeyed"),
    (WritesItsStart, "the_start_is_left_alone"),
    (HandsOutItsGraph, "the_start_is_left_alone"),
    (CallsNaNSlow, "broken_numbers_are_told"),
    (NeedsARow, "a_batch_without_rows_passes"),
    (Boasts, "declarations"),
    (HasNoOptions, "declarations"),
    (Raises, "true_residual"),
    (MixesRows, "neighbours_do_not_matter"),
    (MixesRows, "alone_is_together"),
    (LetsNaNThrough, "neighbours_do_not_matter"),
    (StepsByBatchSize, "alone_is_together"),
    (LiesAboutResidual, "true_residual"),
    (ClaimsToConverge, "true_residual"),
    (ReturnsTheNextPoint, "true_residual"),
    (CallsInSecret, "true_counts"),
    (ForgetsCounts, "true_counts"),
    (StopsEarly, "known_answers"),
    (LooksAtCheckEvery, "check_every_is_bit_equal"),
    (WidensHalf, "half_states"),
    (EndsABudget, "budget"),
    (KeepsTheLastPointOfABudget, "budget"),
    (ReadsTheDevice, "budget_does_not_read_the_device"),
    (ReadsTheDevice, "lean"),
    (Wasteful, "lean"),
    (CutsTheGraph, "differentiable"),
    (StopsEarly, "recurrences_are_solved"),
    (MixesRows, "rows_of_sequences_keep_apart"),
]


@pytest.mark.parametrize(("wrong", "promise"), CAUGHT)
def test_wrong_solvers_are_caught(wrong: type[Right], promise: str):
    check = dict(solver_checks(wrong))[promise]
    with pytest.raises(AssertionError, match=rf"{wrong.__name__}\(\) breaks '{promise}'\n  asked: .+\n  seen: .+"):
        check()


def test_every_promise_is_broken_by_one_of_them():
    apart = {"alone_agrees_with_blas"}  # broken below, by a solver that promises less
    assert {promise for _, promise in CAUGHT} | apart == {label for label, _ in solver_checks(Right)}


def test_the_promise_that_broke_is_named():
    with pytest.raises(AssertionError) as caught:
        check_solver(LiesAboutResidual)
    assert str(caught.value).startswith(
        "LiesAboutResidual() breaks 'true_residual'\n"
        "  asked: The reported residual is that of the returned point and decides the status, in float32 and float64.\n"
        "  seen: symmetric_0.9: reported tensor(["
    )


def test_a_right_solver_passes():
    check_solver(Right)
    check_solver(Right())


@options
class HonoursLittle(Solver):
    """A whole method that respects three fields of Stop and says so."""

    guarantees = frozenset({"rows", "check_every"})
    honours = frozenset({"max_iter", "rtol", "check_every"})

    def solve(self, f, z0, stop, frame):
        return run(Right(), f, z0, stop, frame)


def test_nothing_is_asked_that_is_not_honoured():
    check_solver(HonoursLittle)


@options
class TurnsAway(StepSolver):
    """Keeps rows apart, and leaves a rotation further with every step."""

    def init(self, z: Tensor) -> Any:
        return None

    def step(self, f: Map, at: Evaluation, state: Any) -> tuple[Tensor, Any]:
        return at.z + 2.5 * at.r, state


def test_answers_are_asked_of_those_who_promise_them():
    """Rows that keep apart need not converge, neither in half precision."""
    assert TurnsAway.guarantees >= {"rows", "half"}
    check_solver(TurnsAway)
    eager = type("Eager", (TurnsAway,), {"guarantees": TurnsAway.guarantees | {"known_answers"}})
    checks = dict(solver_checks(options(eager)))
    for promise in ("known_answers", "alone_agrees_with_blas", "half_states"):
        with pytest.raises(AssertionError, match=promise):
            checks[promise]()
