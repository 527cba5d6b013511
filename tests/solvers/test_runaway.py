"""Rows whose state runs away while the residual stands still are DIVERGED, whatever the solver (numerics 25)."""

from __future__ import annotations

import pytest
import torch

from deqlm.testing.solvers.problems import normal
from deqlm_solvers import SOLVERS, Anderson, Broyden, FixedPoint, Layout, Solve, Status, StepSolver, Stop
from deqlm_solvers.loop.runaway import Runaway, share_left

IMPLS = [s(impl=impl) for s in (FixedPoint, Anderson, Broyden) for impl in ("torch", "cpp")]
each = pytest.mark.parametrize("solver", IMPLS, ids=lambda s: f"{s.name}-{s.impl}")
STEP = torch.tensor([[3.0, -4.0, 0.0]], dtype=torch.float64)


def drift(z: torch.Tensor) -> torch.Tensor:
    """z + 5 e: no fixed point; the residual is 5 for ever, and ||f(z)|| grows by 5 an evaluation."""
    return z + STEP


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("test_every", [1, 7, "auto"])
def test_a_drift_is_no_solution(impl, test_every):
    sol = Solve(FixedPoint(impl=impl), Stop(max_iter=400, rtol=1e-2, test_every=test_every))(drift, 0 * STEP)
    assert sol.status.tolist() == [Status.DIVERGED]
    assert sol.runaway.tolist() == [True]
    assert sol.residual.item() == pytest.approx(5.0)
    assert sol.first[0].item() == pytest.approx(5.0)
    assert sol.steps.item() == 400


@each
def test_a_residual_block_never_ends_converged(solver):
    """z + F(z) with a bounded F that has no zero: mixing jumps far, and finds nothing there."""
    push = normal(0, 5, 8).abs() + 1
    sol = Solve(solver, Stop(rtol=1e-4))(lambda z: z + push * (1.5 + 0.3 * torch.tanh(z)), torch.zeros(5, 8).double())
    assert not sol.converged.any()


def test_growth_without_a_fall_passes_within_ten_times_the_start():
    near = Solve(FixedPoint(), Stop(max_iter=50, rtol=0.2))(drift, 0 * STEP)
    assert near.converged.all(), "5 / 30 <= .2, and 30 is six times the size of the start, max(0, 5)"
    assert near.steps.item() == 5


def test_growth_with_a_fall_passes():
    """A contraction whose solution is 1,000 times as large as its first step."""
    sol = Solve(FixedPoint(), Stop(max_iter=20000, rtol=1e-4))(lambda z: 0.999 * z + 1, torch.zeros(1, 1).double())
    assert sol.converged.all()
    assert sol.z.item() > 850


def test_a_warm_start_passes():
    far = 1e6 * torch.ones(2, 3, dtype=torch.float64)
    sol = Solve(Anderson(), Stop(rtol=1e-6))(lambda z: 0.5 * z + 0.5 * far, far.clone())
    assert sol.converged.all()
    assert sol.steps.tolist() == [1, 1]


@each
def test_rows_beside_a_drift_are_untouched(solver):
    b = normal(1, 4, 3)
    still = torch.tensor([[1.0], [0.0], [1.0], [1.0]], dtype=torch.float64)
    f = lambda z: still * (0.5 * torch.tanh(z) + b) + (1 - still) * drift(z)  # noqa: E731
    one = Solve(solver, Stop(max_iter=300, rtol=1e-3))(f, torch.zeros(4, 3, dtype=torch.float64))
    calm = Solve(solver, Stop(max_iter=300, rtol=1e-3))(lambda z: 0.5 * torch.tanh(z) + b, torch.zeros(4, 3).double())
    assert one.converged.tolist() == [True, False, True, True]
    assert torch.equal(one.z[still[:, 0] == 1], calm.z[still[:, 0] == 1])


@each
@pytest.mark.parametrize("per", ["token", "leaf"])
def test_tokens_and_leaves_run_away_too(solver, per):
    """One token that drifts keeps its row from passing."""
    layout = Layout(leaves=((2, 3),)) if per == "token" else Layout(leaves=((3,), (3,)))
    f = lambda z: torch.cat([0.5 * z[:, :3] + 1, drift(z[:, 3:])], 1)  # noqa: E731
    stop = Stop(max_iter=200, rtol=1e-2, per=per)
    sol = Solve(solver, stop)(f, torch.zeros(1, 6, dtype=torch.float64), layout)
    assert not sol.converged.any()
    if solver.name == "fixed_point":
        assert sol.runaway.all()


def test_the_rule_of_the_authors_ends_when_it_ends_and_tells():
    sol = Solve(FixedPoint(), Stop(max_iter=400, rtol=1e-2, keep="best_f"))(drift, 0 * STEP)
    assert sol.status.tolist() == [Status.DIVERGED]
    assert sol.steps.item() < 400


def test_a_solve_that_goes_on_remembers_where_the_first_one_began():
    grown = 1e4 * STEP
    alone = Solve(FixedPoint(), Stop(rtol=1e-3))(drift, grown)
    assert alone.converged.all(), "nothing tells it from a warm start"
    first = torch.tensor([[5.0], [5.0]], dtype=torch.float64)
    for impl in ("torch", "cpp"):
        on = Solve(FixedPoint(impl=impl), Stop(rtol=1e-3))(drift, grown, Layout(first=first))
        assert on.status.tolist() == [Status.DIVERGED]
        assert torch.equal(on.first, first)


def test_the_rule_by_hand():
    one = torch.ones(1, dtype=torch.float64)
    watch = Runaway()

    def runs(residual: float, size: float, within: bool = True) -> bool:
        return bool(watch.runs(torch.tensor([within]), residual * one, size * one))

    assert not runs(1.0, 1.0), "a start that passes"
    assert not runs(1.0, 10.0), "ten times the start is allowed"
    assert not runs(0.5, 1e9), "half of the first residual is a fall"
    assert not runs(1.0, 100.0, within=False), "what is not within tolerance is no question"
    assert runs(8.0, 100.0), "first within tolerance here, at 8"
    assert runs(4.1, 120.0)
    assert not runs(4.0, 190.0), "half of that, near there"
    assert runs(1.0, 1000.0), "far from there it begins anew"
    assert not runs(0.5, 1000.0)


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("size", [1e-3, 1e-9])
def test_from_a_tiny_start_a_row_goes_on_until_its_residual_has_fallen(impl, size):
    f = lambda z: 2 * z / (1 + 2 * z)  # noqa: E731
    sol = Solve(FixedPoint(impl=impl), Stop(rtol=1e-3))(f, torch.full((1, 1), size, dtype=torch.float64))
    assert sol.converged.all()
    assert sol.z.item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", sorted(name for name in SOLVERS if not name.startswith(("torchdeq", "scipy"))))
def test_every_solver_tells_a_drift_from_a_solution(name):
    solver = SOLVERS[name]()
    stop = Stop(max_iter=200, rtol=1e-2)
    if isinstance(solver, StepSolver) or {"max_iter", "rtol"} <= solver.honours:
        sol = Solve(solver, stop)(lambda z: z + 1 + 0.01 * torch.sin(z), torch.zeros(2, 4, dtype=torch.float64))
        assert not sol.converged.any()


MIXERS = ["fixed_point", "anderson", Broyden(), Broyden(line_search="armijo"), "newton_krylov"]


@pytest.mark.parametrize("solver", MIXERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_a_pre_norm_block_whose_push_halves_by_chance_never_ends_converged(solver, dtype, seed):
    """z + F(norm(z)): the residual depends on the direction of z, and falls to .4 of the first one far away."""
    torch.manual_seed(seed)
    mlp = torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 12), torch.nn.GELU(), torch.nn.Linear(12, 6))
    mlp = mlp.to(dtype)
    x = torch.randn(4, 6).to(dtype)
    sol = Solve(solver, Stop(max_iter=120, rtol="auto"))(lambda z: z + mlp(z + x), torch.zeros_like(x))
    size = torch.maximum(sol.z.norm(dim=1), torch.ones(4)) / sol.first[1]
    assert not (sol.converged & (size > 100)).any()


@pytest.mark.parametrize(
    ("solver", "act", "width", "seed"),
    [("anderson", "Tanh", 8, 6), ("anderson", "Tanh", 16, 1), ("broyden", "ReLU", 8, 1), ("broyden", "ReLU", 8, 9)],
)
def test_in_bfloat16_a_residual_that_halves_by_chance_is_no_solution(solver, act, width, seed):
    """z + mlp(z + x): the tolerance is .03 of a state that has grown, and a residual within it halves soon."""
    torch.manual_seed(seed)
    make = getattr(torch.nn, act)
    mlp = torch.nn.Sequential(torch.nn.Linear(width, 2 * width), make(), torch.nn.Linear(2 * width, width)).bfloat16()
    x = torch.randn(8, width).bfloat16()
    f = lambda z: z + x + mlp(z + x)  # noqa: E731
    sol = Solve(solver, Stop(rtol="auto"))(f, torch.zeros_like(x))
    grown = sol.z.double().norm(dim=1) > 10 * sol.first[1]
    assert not (sol.converged & grown & (sol.residual > 0.5 * sol.first[0])).any()


def test_a_state_that_rounding_holds_is_no_solution():
    """z + 1 is z in float32 beyond 2**25."""
    push = torch.ones(1, 3)
    leap = lambda z: torch.where(z.abs() < 1e6, 30 * z + push, z + push)  # noqa: E731
    sol = Solve(FixedPoint(), Stop(max_iter=60, rtol=1e-4))(leap, torch.zeros(1, 3))
    assert sol.runaway.all()


def test_what_may_be_left_of_a_residual():
    assert share_left(0.0, 1e-7) == share_left(1e-2, 1e-7) == share_left(1e-7, 1e-7) == 0.5
    assert share_left(1e-4, 1e-7) == 0.1
    one = torch.ones(1, dtype=torch.float64)

    def runs(residual: float, size: float, eps: float = 0.0) -> bool:
        watch = Runaway(torch.stack((one, one)), share=0.1, eps=eps)
        return watch.runs(one > 0, residual * one, size * one).item()

    assert [runs(1, 1), runs(0.51, 11), runs(0.5, 11)] == [False, True, False], "half, near the start"
    assert [runs(0.11, 1001), runs(0.1, 999)] == [True, False], "a tenth, far from it"
    assert [runs(0, 600, 4e-3), runs(0, 400, 4e-3)] == [True, False], "0 at 600 counts as .6, at 400 as .4"
    coarse = Runaway(torch.stack((one, one)), eps=8e-3)
    fell = [coarse.runs(one > 0, residual * one, 100 * one).item() for residual in (8, 4, 2)]
    assert fell == [True, True, False], "a quarter of what it was near there, where numbers are coarse"


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_a_slow_contraction_passes_when_its_residual_has_halved(impl):
    sol = Solve(FixedPoint(impl=impl), Stop(max_iter=1000, rtol=1e-3))(
        lambda z: 0.999 * z + 1, torch.zeros(1, 1).double()
    )
    assert sol.converged.all()
    assert sol.steps.item() == 694
