"""The contract suite catches wrong solvers: each one here breaks one promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deqlm_solvers import GUARANTEES, Cost, Evaluation, Map, Status, StepSolver, options
from deqlm_solvers.loop.loop import run
from solvers import contract
from solvers.contract import Check, checks_of


@options
class Right(StepSolver):
    """Damped Picard, right in everything."""

    guarantees = frozenset(GUARANTEES)

    def init(self, z: Tensor) -> Any:
        return None

    def step(self, f: Map, at: Evaluation, state: Any) -> tuple[Tensor, Any]:
        return at.z + 0.75 * at.r, state


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
        for _ in range(max(contract.OPERATIONS.values())):
            r = r * 1
        return at.z + 0.75 * r, state


@options
class CutsTheGraph(Right):
    def step(self, f, at, state):
        return at.z + 0.75 * at.r.detach(), state


CAUGHT = [
    (MixesRows, contract.neighbours_do_not_matter),
    (MixesRows, contract.alone_is_together),
    (LetsNaNThrough, contract.neighbours_do_not_matter),
    (StepsByBatchSize, contract.alone_is_together),
    (LiesAboutResidual, contract.true_residual),
    (ClaimsToConverge, contract.true_residual),
    (ReturnsTheNextPoint, contract.true_residual),
    (CallsInSecret, contract.true_counts),
    (ForgetsCounts, contract.true_counts),
    (StopsEarly, contract.known_answers),
    (LooksAtCheckEvery, contract.check_every_is_bit_equal),
    (WidensHalf, contract.half_states),
    (EndsABudget, contract.budget),
    (KeepsTheLastPointOfABudget, contract.budget),
    (ReadsTheDevice, contract.budget_does_not_read_the_device),
    (ReadsTheDevice, contract.lean),
    (Wasteful, contract.lean),
    (CutsTheGraph, contract.differentiable),
]


@pytest.mark.parametrize(("wrong", "check"), CAUGHT, ids=lambda value: value.__name__)
def test_wrong_solvers_are_caught(wrong: type[Right], check: Check):
    with pytest.raises(AssertionError):
        check(wrong())


def test_a_right_solver_passes():
    for check in checks_of(Right):
        check(Right())
