"""Random solves against the documented rules: residuals, statuses, counts, and rows that know nothing of each other."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm_solvers import Solution, Status
from fuzz.draw import FUSED, SOLVERS, Case, Rowwise, draw
from fuzz.oracle import Reading, Row

BLOCK = 50
CASES = BLOCK
"""Of each kind of solver, in the fast tests."""
MORE = 6 * BLOCK
"""With the slow tests; more than 2,000 in all."""
MANY = 58 * BLOCK
"""With those of the mark `bench`; more than 20,000 in all."""
FIELDS = ("residual", "relative", "steps", "status")


def seeds() -> list[Any]:
    """Return every kind of solver with its seeds, in blocks; the later ones are marked."""

    def marks(start: int) -> list[Any]:
        return [] if start < CASES else [pytest.mark.slow if start < MORE else pytest.mark.bench]

    return [
        pytest.param(name, range(start, start + BLOCK), marks=marks(start), id=f"{name}-{start}")
        for name in SOLVERS
        for start in range(0, MANY, BLOCK)
    ]


def run(case: Case) -> tuple[Solution, Rowwise]:
    f = case.map()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="rtol=")
        sol = deqlm.solve(
            f, case.z0, args=case.args, solver=case.solver, stop=case.stop, on_failure="ignore", **case.keywords
        )
    return sol, f


def rows_of(state: Any) -> Tensor:
    if isinstance(state, dict):
        return torch.cat([state["a"].flatten(1), state["b"][:, None]], 1)
    return state.flatten(1)


def readings(case: Case, z: Tensor) -> list[Reading]:
    """Read points (B, N) by the formula, group by group, in float64."""
    fz = Rowwise(case.kind).of(z, *case.args).double()
    z = z.double()
    mask, stop = case.keywords.get("token_mask"), case.stop
    scale = case.keywords.get("scale", 0.0)
    out = []
    for row in range(case.rows):
        s = float(scale[row]) if isinstance(scale, Tensor) else scale
        if stop.per == "token":
            parts = [slice(i * z.shape[1] // 4, (i + 1) * z.shape[1] // 4) for i in range(4)]
            parts = [p for i, p in enumerate(parts) if mask is None or mask[row, i]]
        else:
            parts = [slice(0, 6), slice(6, 7)] if stop.per == "leaf" else [slice(None)]
        here = z[row].clone(), fz[row].clone()
        if stop.per == "row" and mask is not None:
            raise AssertionError("a mask goes with tokens")
        residuals, sizes, norms = [], [], []
        for p in parts:
            point, image = here[0][p], here[1][p]
            unit = math.sqrt(max(1, point.numel())) if stop.norm == "rms" else 1.0
            norms.append(math.hypot(*image.tolist()) / unit)
            residuals.append(math.hypot(*(image - point).tolist()) / unit)
            sizes.append(max(norms[-1], math.hypot(*point.tolist()) / unit))
        out.append(Reading(residuals, sizes, [stop.atol + stop.rtol * max(n, s) for n in norms]))
    return out


def slack_of(case: Case) -> float:
    dtype = case.args[0].dtype
    return {torch.float64: 1e-6, torch.float32: 0.05, torch.bfloat16: 0.5}[dtype]


def check_truth(case: Case, sol: Solution, f: Rowwise) -> None:
    """What is reported is the residual of what is returned, and CONVERGED means that it is within tolerance."""
    z = f.points[-1] if sol.residual_of == "previous" and f.points else rows_of(sol.z)
    slack = slack_of(case)
    seen = [r for point in f.points if point.shape[0] == case.rows for r in [readings(case, point)]]
    for row, reading in enumerate(readings(case, z)):
        status = Status(int(sol.status[row]))
        told, true = float(sol.residual[row]), reading.residual
        if status is not Status.NONFINITE and math.isfinite(told) and math.isfinite(true):
            floor = slack * max(reading.tolerances, default=0.0) + 1e-4 * slack * reading.size
            assert abs(told - true) <= slack * true + floor, f"row {row}: residual {true}, told {told}"
        if status is not Status.CONVERGED:
            continue
        assert reading.within(max(0.051, slack)), f"row {row}: CONVERGED with {reading}"
        largest = max([true, *(p[row].residual for p in seen if math.isfinite(p[row].residual))])
        start = seen[0][row].size if seen else math.inf
        assert true <= (0.5 + slack) * largest or reading.size <= (10 + slack) * start, f"row {row} ran away"


def check_statuses(case: Case, sol: Solution, f: Rowwise) -> None:
    """Of plain iteration, every evaluation of which is a tested point, the rules tell the status."""
    if case.solver.name != "fixed_point" or case.stop.test_every != 1 or case.stop.compact is not False:
        return
    for row in range(case.rows):
        history = Row(case.stop)
        for point in f.points[: int(sol.steps[row])]:
            history.seen.append(readings(case, point)[row])
        allowed = history.expected(slack_of(case))
        ended = Status(int(sol.status[row]))
        assert ended in allowed, f"row {row} ended {ended.name}, not {allowed}"


def check_counts(case: Case, sol: Solution, f: Rowwise) -> None:
    assert sol.cost.evaluations == len(f.points), "calls of f"
    assert sol.cost.row_evaluations == sum(p.shape[0] for p in f.points), "rows summed over calls"
    if case.solver.name in FUSED:
        assert (sol.steps <= case.stop.max_iter).all()
        beside = (2 if case.stop.compact else 0) + int(sol.converged.any() and sol.failed.any())
        assert len(f.points) <= case.stop.max_iter + beside, "more calls than max_iter, a probe and last looks"


def same(one: Solution, a: Any, other: Solution, b: Any, what: str) -> None:
    assert torch.equal(rows_of(one.z)[a].nan_to_num(7.0), rows_of(other.z)[b].nan_to_num(7.0)), f"z, {what}"
    for name in FIELDS:
        left, right = getattr(one, name)[a], getattr(other, name)[b]
        assert torch.equal(left.nan_to_num(7.0), right.nan_to_num(7.0)), f"{name}, {what}: {left} and {right}"
    if one.token_steps is not None and other.token_steps is not None:
        assert torch.equal(one.token_steps[a], other.token_steps[b]), f"token_steps, {what}"


def check_rows(case: Case, sol: Solution) -> None:
    """A row alone, in another place, and beside a row of NaN is the same to the bit."""
    B = case.rows
    if B == 0:
        return
    row = case.seed % B
    same(run(case.take(torch.tensor([row])))[0], [0], sol, [row], f"row {row} alone")
    if B == 1:
        return
    order = torch.randperm(B, generator=torch.Generator().manual_seed(case.seed))
    same(run(case.take(order))[0], list(range(B)), sol, order.tolist(), f"in the order {order.tolist()}")
    spoilt = (row + 1) % B
    others = [i for i in range(B) if i != spoilt]
    same(run(case.spoilt(spoilt))[0], others, sol, others, f"beside NaN in row {spoilt}")


def check_backends(case: Case, sol: Solution) -> None:
    """Plain iteration rounds alike on every backend; mixing may not, but tells the truth on each."""
    if case.solver.name not in FUSED:
        return
    other_impl = {"torch": "cpp", "cpp": "torch"}[case.solver.impl]  # type: ignore[attr-defined]
    twin = replace(case, solver=case.solver.replace(impl=other_impl))
    other, f = run(twin)
    check_truth(twin, other, f)
    if case.solver.name != "fixed_point" or case.kind == "wild" or slack_of(case) > 1e-6:
        return
    assert torch.equal(sol.status, other.status), f"statuses {sol.status} and {other.status} of torch and cpp"
    assert torch.equal(sol.steps, other.steps), "steps of torch and cpp"
    done = sol.converged  # of points that are equally good rounding picks the best
    assert torch.allclose(rows_of(sol.z)[done], rows_of(other.z)[done], rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(("name", "block"), seeds())
def test_random_solves(name: str, block: range):
    for seed in block:
        case = draw(seed, name)
        before = rows_of(case.z0).clone()
        try:
            sol, f = run(case)
            check_truth(case, sol, f)
            check_statuses(case, sol, f)
            check_counts(case, sol, f)
            check_rows(case, sol)
            check_backends(case, sol)
        except Exception as error:
            error.add_note(f"draw({seed}, {name!r}): {case.solver}, {case.stop}, map {case.kind}, {case.keywords}")
            raise
        assert torch.equal(rows_of(case.z0), before), "the start was written to"
