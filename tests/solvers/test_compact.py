"""Rows that are done leave the batch where f allows it: less work, the same answers (numerics 7)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqlm.testing.solvers.problems import exact_rows, normal
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solve, Status, StepSolver, Stop, options
from deqlm_solvers.loop.subset import subset

SOLVERS = {
    f"{solver.name}-{impl}": solver.replace(impl=impl)
    for solver in (FixedPoint(), Anderson(), Broyden())
    for impl in ("torch", "cpp")
}
each = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
B, N = 24, 600


class Rows:
    """exact_rows that can be narrowed; counts calls and rows."""

    def __init__(self, b: Tensor, gain: Tensor, log: list[int] | None = None) -> None:
        self.b, self.gain = b, gain
        self.log = [] if log is None else log

    def __call__(self, z: Tensor) -> Tensor:
        self.log.append(z.shape[0])
        return exact_rows(self.b, self.gain)(z)

    def narrow(self, rows: Tensor) -> Rows:
        return Rows(self.b[rows], self.gain[rows], self.log)


class Mixing(Rows):
    def __call__(self, z: Tensor) -> Tensor:
        return super().__call__(z) + 1e-2 * z.mean(0)

    def narrow(self, rows: Tensor) -> Mixing:
        return Mixing(self.b[rows], self.gain[rows], self.log)


class Capturing(Rows):
    """Holds a tensor of the whole batch that it does not narrow."""

    def narrow(self, rows: Tensor) -> Capturing:
        return Capturing(self.b, self.gain, self.log)


def one_hard_row() -> tuple[Tensor, Tensor]:
    gain = torch.full((B, 1), 0.3, dtype=torch.float64)
    gain[5], gain[17] = 0.97, 0.8
    return normal(0, B, N), gain


@each
@pytest.mark.parametrize(
    "stop", [Stop(max_iter=300, rtol=1e-6), Stop(max_iter=300, rtol=1e-6, test_every=2, trace=True)]
)
def test_answers_are_those_of_the_whole_batch(solver: StepSolver, stop: Stop):
    b, gain = one_hard_row()
    narrow, whole = Rows(b, gain), Rows(b, gain)
    left = Solve(solver, stop)(narrow, torch.zeros_like(b))
    stayed = Solve(solver, stop.replace(compact=False))(whole, torch.zeros_like(b))
    assert set(whole.log) == {B}
    assert min(narrow.log) <= 2
    assert_same_rows(left, slice(None), stayed, slice(None))
    assert left.cost.row_evaluations == sum(narrow.log) < 0.6 * sum(whole.log)
    assert left.cost.evaluations == len(narrow.log)
    assert int(left.steps.max()) + 2 >= len(narrow.log), "a probe is one evaluation more"
    if stop.trace:
        assert torch.equal(left.trace.nan_to_num(-1.0), stayed.trace.nan_to_num(-1.0))


@each
def test_a_row_that_is_lost_costs_nothing_afterwards(solver: StepSolver):
    b, gain = one_hard_row()
    b[2] = torch.nan
    gain[3] = 1e5
    f = Rows(b, gain)
    sol = Solve(solver, Stop(max_iter=300, rtol=1e-6))(f, torch.zeros_like(b))
    assert sol.status[2] == Status.NONFINITE
    others = [i for i in range(B) if i not in (2, 3)]
    assert sol.converged[others].all()
    assert min(f.log) <= 3


@each
@pytest.mark.parametrize("kind", [Mixing, Capturing])
def test_rows_stay_where_f_mixes_or_captures_them(solver: StepSolver, kind: type[Rows]):
    b, gain = one_hard_row()
    f, twin = kind(b, gain), kind(b, gain)
    sol = Solve(solver, Stop(max_iter=300, rtol=1e-6))(f, torch.zeros_like(b))
    stayed = Solve(solver, Stop(max_iter=300, rtol=1e-6, compact=False))(twin, torch.zeros_like(b))
    assert sol.converged.all()
    assert_same_rows(sol, slice(None), stayed, slice(None))
    assert len([rows for rows in f.log if rows != B]) <= 1, "one probe, then never again"
    assert sol.cost.row_evaluations == sum(f.log)


@each
def test_tokens_masks_and_scales_leave_with_their_rows(solver: StepSolver):
    b, gain = one_hard_row()
    mask = torch.ones(B, 6, dtype=torch.bool)
    mask[:, 4:] = False
    layout = Layout(leaves=((6, 100),), token_mask=mask, scale=torch.rand(B, dtype=torch.float64))
    stop = Stop(max_iter=300, rtol=1e-6, per="token")
    left = Solve(solver, stop)(Rows(b, gain), torch.zeros_like(b), layout)
    stayed = Solve(solver, stop.replace(compact=False))(Rows(b, gain), torch.zeros_like(b), layout)
    assert_same_rows(left, slice(None), stayed, slice(None))
    assert torch.equal(left.token_steps, stayed.token_steps)


@each
def test_small_work_and_the_last_steps_are_not_worth_it(solver: StepSolver):
    b, gain = one_hard_row()
    small = Rows(b[:, :8], gain)
    Solve(solver, Stop(max_iter=300, rtol=1e-6))(small, torch.zeros(B, 8, dtype=torch.float64))
    assert set(small.log) == {B}
    alike = Rows(b, torch.linspace(0.28, 0.3, B, dtype=torch.float64)[:, None])
    Solve(solver, Stop(max_iter=300, rtol=1e-6))(alike, torch.zeros_like(b))
    assert set(alike.log) == {B}


def test_a_step_that_evaluates_f_keeps_its_rows():
    @options
    class Twice(StepSolver):
        def init(self, z):
            return None

        def step(self, f, at, state):
            return f(at.fz), state

    b, gain = one_hard_row()
    f = Rows(b, gain)
    sol = Solve(Twice(), Stop(max_iter=400, rtol=1e-6))(f, torch.zeros_like(b))
    assert sol.converged.all()
    assert set(f.log) == {B}


def test_the_probe_sees_a_difference():
    b, gain = one_hard_row()
    z, rows = torch.rand_like(b), torch.tensor([1, 5])
    for f, possible in ((Rows(b, gain), True), (Mixing(b, gain), False), (Capturing(b, gain), False)):
        assert (subset(f, rows, z, f(z)) is not None) is possible
    assert subset(exact_rows(b, gain), rows, z, z) is None


@each
@pytest.mark.parametrize("compact", [True, "at_once"])
def test_neither_probe_nor_last_look_is_a_step(solver: StepSolver, compact):
    """A row has all its ``max_iter`` evaluations, whoever left the batch before."""
    b, gain = one_hard_row()
    alone = Solve(solver, Stop(max_iter=300, rtol=1e-6))(Rows(b[5:6], gain[5:6]), torch.zeros(1, N).double())
    stop = Stop(max_iter=int(alone.steps[0]), rtol=1e-6, compact=compact)
    f = Rows(b, gain)
    sol = Solve(solver, stop)(f, torch.zeros_like(b))
    assert sol.converged.all()
    assert sol.steps[5] == alone.steps[0] == stop.max_iter
    assert torch.equal(sol.z[5], alone.z[0])
    assert len(set(f.log)) > 1, "rows have left"


@each
def test_rows_stay_when_leaving_would_cost_more_than_it_saves(solver: StepSolver):
    b, gain = one_hard_row()
    f = Rows(b, gain)
    quick = Solve(solver, Stop(max_iter=300, rtol=1e-6, compact=False))(Rows(b, gain), torch.zeros_like(b))
    first = int(quick.steps.min())
    Solve(solver, Stop(max_iter=first + 1, rtol=1e-6, compact="at_once"))(f, torch.zeros_like(b))
    assert len(f.log) == first + 1
    assert set(f.log) == {B}


@each
def test_a_map_that_raises_for_fewer_rows_keeps_them(solver: StepSolver):
    """An assertion of the user's, met by the probe only, is no error of the solve."""

    class Strict(Rows):
        def __call__(self, z: Tensor) -> Tensor:
            assert z.shape[0] == B, "exactly this batch"
            return super().__call__(z)

        def narrow(self, rows: Tensor) -> Strict:
            return Strict(self.b[rows], self.gain[rows], self.log)

    b, gain = one_hard_row()
    sol = Solve(solver, Stop(max_iter=300, rtol=1e-6))(Strict(b, gain), torch.zeros_like(b))
    assert sol.converged.all()
