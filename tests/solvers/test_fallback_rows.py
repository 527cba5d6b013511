"""Fallback: rows that are solved stay as they are, and only failed ones are worked on (numerics 7, 9)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import normal
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import (
    Anderson,
    Fallback,
    FixedPoint,
    Layout,
    Solve,
    Status,
    Stop,
)
from solvers.fallback_cases import F64, GAIN, Selectable, affine


def test_rows_stay_in_the_batch_when_asked_to():
    f = Selectable(GAIN[:4])
    sol = Solve(Fallback("fixed_point", "anderson"), Stop(rtol=1e-6, compact=False))(f, torch.zeros(4, 3, dtype=F64))
    assert sol.converged.all()
    assert set(f.seen) == {4}


@pytest.mark.parametrize("make", [affine, Selectable], ids=["held", "narrowed"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rows_that_converged_keep_the_bits_of_the_first_member(make, dtype):
    gain = GAIN.to(dtype)
    healthy, z0 = [0, 2], torch.zeros(5, 3, dtype=dtype)
    stop = Stop(rtol=1e-6)
    sol = Solve(Fallback("fixed_point", "anderson"), stop)(make(gain), z0)
    first = Solve("fixed_point", stop)(affine(gain), z0)
    assert first.converged.tolist() == [True, False, True, False, False]
    assert sol.converged.tolist() == [True, True, True, True, False]
    assert_same_rows(sol, healthy, first, healthy)
    well = Solve(Fallback("fixed_point", "anderson"), stop)(make(torch.full_like(gain, 0.5)), z0)
    assert_same_rows(sol, [0], well, [0])
    assert sol.picked is not None
    assert sol.picked.tolist() == [0, 1, 0, 1, 0]


def test_a_narrow_map_is_evaluated_on_failed_rows_only():
    gain = GAIN[:4]
    f, first = Selectable(gain), Selectable(gain)
    z0 = torch.zeros(4, 3, dtype=F64)
    stop = Stop(rtol=1e-6)
    sol = Solve(Fallback("fixed_point", "anderson"), stop)(f, z0)
    Solve("fixed_point", stop)(first, z0)
    assert sol.converged.all()
    assert f.seen[: len(first.seen) + 1] == [*first.seen, 4], "the first member, and one evaluation to compare with"
    assert set(f.seen[len(first.seen) + 1 : -1]) == {2}
    assert f.seen[-1] == 4, "one look at all answers together"
    assert sol.cost.evaluations == len(f.seen)
    assert sol.cost.row_evaluations == sum(f.seen)


def test_without_narrow_finished_rows_are_held_and_paid_for():
    gain = GAIN[:4]
    f = Counted(affine(gain))
    sol = Solve(Fallback("fixed_point", "anderson"), Stop(rtol=1e-6))(f, torch.zeros(4, 3, dtype=F64))
    assert sol.converged.all()
    assert sol.cost.evaluations == f.calls
    assert sol.cost.row_evaluations == f.rows == 4 * f.calls
    for point in f.points[int(sol.steps[[0, 2]].max()) :]:
        assert torch.equal(point[[0, 2]], sol.z[[0, 2]])


class Shy(Selectable):
    """Offers some rows and refuses others, as a map may."""

    def narrow(self, rows: Tensor) -> Selectable | None:  # type: ignore[override]
        return super().narrow(rows) if rows.shape[0] > 1 else None


def test_a_map_that_cannot_leave_these_rows_out_is_evaluated_whole():
    gain = torch.tensor([[0.5], [-3.0], [1.0]], dtype=F64)  # the last row has no fixed point
    f = Shy(gain)
    sol = Solve(Fallback("fixed_point", "anderson", "broyden"), Stop(max_iter=20, rtol=1e-6))(
        f, torch.zeros(3, 2, dtype=F64)
    )
    assert sol.converged.tolist() == [True, True, False]
    assert {2, 3} == set(f.seen)
    assert f.seen[-1] == 3, "one row alone is not offered"
    assert sol.cost.row_evaluations == sum(f.seen)


TARGET = torch.tensor([[1.0], [50.0], [-3.0], [7.0]], dtype=F64)
RATE = torch.tensor([[0.05], [0.95], [0.3], [0.9]], dtype=F64)


class Mixing:
    """Rows of very different speed; all follow the mean of all."""

    def __init__(self, rows: Tensor | None = None, seen: list[int] | None = None) -> None:
        self.rate, self.target = (t if rows is None else t[rows] for t in (RATE, TARGET))
        self.seen: list[int] = [] if seen is None else seen

    def __call__(self, z: Tensor) -> Tensor:
        self.seen.append(z.shape[0])
        return self.rate * z + (1 - self.rate) * self.target + 0.04 * z.mean(0, keepdim=True)

    def narrow(self, rows: Tensor) -> Mixing:
        return Mixing(rows, self.seen)


@pytest.mark.parametrize("hide", [False, True], ids=["offers narrow", "plain"])
@pytest.mark.parametrize("chain", [("fixed_point", "anderson"), ("fixed_point", "broyden", "anderson")], ids=str)
@pytest.mark.parametrize("max_iter", [12, 60])
def test_a_map_that_mixes_rows_is_not_narrowed_and_the_answer_is_true(hide, chain, max_iter):
    f = Mixing()
    seen = Counted(f) if hide else f
    sol = Solve(Fallback(*chain), Stop(max_iter=max_iter, rtol=1e-6))(seen, torch.zeros(4, 3, dtype=F64))
    relative = (f(sol.z) - sol.z).norm(dim=1) / f(sol.z).norm(dim=1)
    assert (relative[sol.converged] <= 1.05e-6).all()
    assert sol.converged.all() or max_iter == 12
    assert sol.picked is not None
    assert (sol.picked == sol.picked[0]).all(), "points of several attempts do not belong together"
    assert f.seen.count(4) + (not hide) >= len(f.seen), "the probe alone may see fewer rows"
    assert sol.cost.evaluations == len(f.seen) - 2
    assert sol.cost.row_evaluations == sum(f.seen) - 8


def test_of_answers_that_all_fail_the_nearest_is_kept_where_rows_mix():
    gain = torch.linspace(0.5, 0.99, 8, dtype=F64)
    f = lambda z: gain * z.flip(0) + 1  # noqa: E731
    stop, z0 = Stop(max_iter=6, rtol=1e-12), torch.zeros(2, 8, dtype=F64)
    first, sol = (Solve(s, stop)(f, z0) for s in ("fixed_point", Fallback("fixed_point", "anderson")))
    assert not sol.converged.any()
    assert sol.picked.tolist() == [1, 1]
    assert (sol.residual < first.residual).all()


def test_scale_mask_and_leaves_go_with_the_rows():
    """A row among others ends as it does alone, with its own scale, mask and tokens."""
    b = normal(1, 4, 12)
    gain = torch.tensor([[0.5], [-4.0], [0.9], [-5.0]], dtype=F64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)
    scale = torch.tensor([0.0, 50.0, 5.0, 0.0], dtype=F64)
    stop = Stop(max_iter=40, rtol=1e-6, per="token", trace=True)
    solver = Fallback(FixedPoint(damping=0.9), "anderson", "broyden")
    sol = Solve(solver, stop)(
        lambda z: gain * z + b, torch.zeros_like(b), Layout(leaves=((4, 3),), scale=scale, token_mask=mask)
    )
    assert sol.picked is not None
    assert sol.token_steps is not None
    assert sol.trace is not None
    assert len(set(sol.picked.tolist())) > 1, "the test needs rows that fall back"
    for i in range(4):
        own = slice(i, i + 1)
        layout = Layout(leaves=((4, 3),), scale=scale[own], token_mask=mask[own])
        alone = Solve(solver, stop)(lambda z, own=own: gain[own] * z + b[own], torch.zeros_like(b[own]), layout)
        assert_same_rows(sol, own, alone, slice(None))
        assert alone.token_steps is not None
        assert torch.equal(sol.token_steps[own], alone.token_steps)
        assert alone.picked == sol.picked[i]
    fell_back = sol.picked > 0
    first = Solve(solver.solvers[0], stop)(
        lambda z: gain * z + b, torch.zeros_like(b), Layout(leaves=((4, 3),), scale=scale, token_mask=mask)
    )
    late = sol.token_steps > first.steps[:, None]
    assert late[mask & fell_back[:, None]].all(), "counted on from the attempts before"
    assert (sol.token_steps <= sol.steps[:, None]).all()
    assert (sol.token_steps[~mask] == 0).all()
    assert (sol.token_steps[mask & sol.converged[:, None]] > 0).all()


def test_states_of_several_dtypes_are_rounded_in_every_attempt():
    points = []

    def f(z: dict[str, Tensor]) -> dict[str, Tensor]:
        points.append(z)
        gain = torch.tensor([[0.5], [-3.0], [0.7]])
        return {"a": gain * z["a"] + 1, "b": gain.double() * z["b"] + 1 + 0.1 * z["a"].double()}

    z0 = {"a": torch.zeros(3, 2), "b": torch.zeros(3, 2, dtype=F64)}
    sol = deqlm.solve(f, z0, solver=Fallback("fixed_point", "anderson"), stop=Stop(rtol=1e-5))
    assert sol.converged.all()
    assert sol.picked is not None
    assert sol.picked.tolist() == [0, 1, 0]
    fz = f(sol.z)
    residual = (torch.cat((fz["a"].double(), fz["b"]), 1) - torch.cat((sol.z["a"].double(), sol.z["b"]), 1)).norm(dim=1)
    assert torch.allclose(residual, sol.residual, rtol=1e-3, atol=1e-9)


def test_a_start_that_is_not_finite_is_left_alone():
    z0 = torch.zeros(3, 2, dtype=F64)
    z0[1, 0] = torch.nan
    f = Counted(affine(torch.full((3, 1), 0.5, dtype=F64)))
    sol = Solve(Fallback(), Stop())(f, z0)
    alone = Counted(affine(torch.full((3, 1), 0.5, dtype=F64)))
    first = Solve("anderson", Stop())(alone, z0)
    assert sol.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert_same_rows(sol, slice(None), first, slice(None))
    assert f.calls == alone.calls
    assert math.isinf(sol.residual[1])


def test_a_map_that_is_nan_costs_one_evaluation_per_member():
    f = Counted(affine(GAIN[4:]))
    sol = Solve(Fallback(), Stop())(f, torch.zeros(1, 2, dtype=F64))
    assert sol.status.item() == Status.NONFINITE
    assert f.calls == sol.steps.item() == len(Fallback().solvers)


def test_a_row_that_leaves_the_domain_is_solved_from_a_finite_point():
    """Plain iteration goes to log of a negative number; Broyden finds the fixed point from the best point before."""

    def f(z: Tensor) -> Tensor:
        return torch.where(z > 4, torch.nan, -2.5 * z + 3.5)

    z0 = torch.full((2, 1), 1.3, dtype=F64)
    assert (Solve("fixed_point", Stop())(f, z0).status == Status.NONFINITE).all()
    points = Counted(f)
    sol = Solve(Fallback("fixed_point", "broyden"), Stop(rtol=1e-8))(points, z0)
    assert sol.converged.all()
    assert torch.allclose(sol.z, torch.ones_like(sol.z))
    assert all(point.isfinite().all() for point in points.points)


def test_a_map_may_write_into_its_last_result():
    buffer = torch.zeros(4, 3, dtype=F64)

    def f(z: Tensor) -> Tensor:
        buffer.copy_(GAIN[:4] * z + 1)
        return buffer

    sol = Solve(Fallback("fixed_point", "anderson"), Stop(rtol=1e-8))(f, torch.zeros(4, 3, dtype=F64))
    assert sol.converged.all()
    assert torch.allclose(sol.z, 1 / (1 - GAIN[:4]).expand(4, 3))


@pytest.mark.parametrize("check_every", [1, 7])
def test_the_trace_is_that_of_all_attempts(check_every):
    z0 = torch.zeros(5, 3, dtype=F64)
    stop = Stop(max_iter=80, rtol=1e-6, trace=True, check_every=check_every)
    sol = Solve(Fallback("fixed_point", "anderson", "broyden"), stop)(affine(GAIN), z0)
    first = Solve("fixed_point", stop.replace(check_every=1))(affine(GAIN), z0)
    assert sol.trace is not None
    assert first.trace is not None
    length = int(first.steps.max())
    assert torch.equal(sol.trace[:length].nan_to_num(), first.trace.nan_to_num())
    assert (sol.trace[length:, [0, 2]] == first.residual[[0, 2]]).all(), "rows that are done repeat their residual"
    assert torch.equal(sol.trace[-1, :4], sol.residual[:4])
    assert len(sol.trace) == first.steps.max() + (sol.steps - first.steps).max() + 1, "and one of the NaN row"
    assert sol.steps[:4].max() <= len(sol.trace) <= sol.cost.evaluations


def test_equal_names_are_told_apart():
    solver = Fallback(Anderson(), Anderson(memory=25, damping=0.5), "fixed_point")
    sol = Solve(solver, Stop())(affine(GAIN[:3]), torch.zeros(3, 2))
    assert sol.choices == ("anderson", "anderson(memory=25, damping=0.5)", "fixed_point")


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    sol = Solve(Fallback("fixed_point", "anderson"), Stop())(affine(GAIN[1:2]), torch.zeros(rows, 2))
    assert sol.z.shape == (rows, 2)
    assert sol.converged.all()
    assert "Solution(" in repr(sol)
