"""The kernels do what torch operations do; every launch is watched, and its programs run in a drawn order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm.testing.solvers.problems import exact_rows, normal
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solution, Solve, Solver, Status, Stop
from gpu.interpreter import Launch, checked
from solvers.test_engines import METHODS, compare, stops

GAIN = torch.tensor([[0.3], [0.9], [-0.8], [1.2], [0.95]], dtype=torch.float64)
RULES = {
    "picard": FixedPoint(),
    "damped": FixedPoint(damping=0.7, first_damping=1.0),
    "anderson": Anderson(memory=4),
    "mixing": Anderson(memory=3, plain_rate=0.0, damping=0.8),
    "two_points": Anderson(memory=2, ridge=1e-3),
    "broyden": Broyden(memory=4),
    "bad": Broyden(memory=3, update="bad"),
    "one_pair": Broyden(memory=1, damping=0.5),
}
rules = pytest.mark.parametrize("solver", RULES.values(), ids=RULES)
SOME = ("damped", "anderson", "bad", "broyden", "one_pair")
some_rules = pytest.mark.parametrize("solver", [RULES[name] for name in SOME], ids=SOME)


def both(
    solver: Solver, stop: Stop, f, z0: Tensor, layout: Layout | None = None, order: str | int = 5
) -> tuple[Solution, Solution, list[Launch]]:
    plain = Solve(solver.replace(impl="torch"), stop)(f, z0, layout)
    with checked(order) as launches:
        fused = Solve(solver.replace(impl="triton"), stop)(f, z0, layout)
    return plain, fused, launches


def assert_agree(plain: Solution, fused: Solution, slack: float) -> None:
    assert torch.equal(plain.status, fused.status)
    assert torch.equal(plain.steps, fused.steps)
    assert (plain.z.dtype, plain.residual_of, plain.choices) == (fused.z.dtype, fused.residual_of, fused.choices)
    assert torch.allclose(plain.z, fused.z, rtol=slack, atol=slack, equal_nan=True)
    for name in ("residual", "relative", "first"):
        ours, theirs = getattr(fused, name), getattr(plain, name)
        assert (ours is None) == (theirs is None), name
        assert ours is None or torch.allclose(theirs, ours, rtol=100 * slack, atol=slack, equal_nan=True), name
    for name in ("picked", "token_steps", "runaway"):
        ours, theirs = getattr(fused, name), getattr(plain, name)
        assert (ours is None) == (theirs is None), name
        assert ours is None or torch.equal(ours, theirs), name
    assert fused.cost == plain.cost


def rows(count: int, N: int = 12) -> tuple[Tensor, Tensor]:
    return normal(3, 5, N)[:count], GAIN[:count]


@pytest.mark.parametrize("name", ["picard", "anderson", "broyden"])
def test_a_few_steps_agree(name: str):
    b, gain = rows(2)
    plain, fused, _ = both(RULES[name], Stop(max_iter=5, rtol=1e-3), exact_rows(b, gain), torch.zeros_like(b))
    assert_agree(plain, fused, 1e-9)


@pytest.mark.slow
@rules
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steps_statuses_and_choices_agree(solver: Solver, dtype: torch.dtype):
    b, gain = rows(3)
    rtol, slack = {torch.float64: (1e-8, 1e-7), torch.float32: (1e-4, 1e-3), torch.bfloat16: (3e-2, 4e-2)}[dtype]
    if dtype != torch.float64:
        gain = gain.clamp_max(0.9)  # nothing that expands, where rounding decides the way
    stop = Stop(max_iter=10, rtol=rtol)
    plain, fused, _ = both(solver, stop, exact_rows(b, gain), torch.zeros_like(b, dtype=dtype))
    assert_agree(plain, fused, slack)


@pytest.mark.slow
@rules
def test_rows_that_end_badly(solver: Solver):
    b, gain = rows(5)
    b[1], gain = torch.nan, gain.clone()
    gain[2] = -30.0
    start = torch.zeros_like(b)
    start[4] = torch.inf
    plain, fused, _ = both(solver, Stop(max_iter=8, rtol=1e-6), exact_rows(b, gain), start, order="reverse")
    assert plain.status[1] == plain.status[4] == Status.NONFINITE
    assert_agree(plain, fused, 1e-6)


@pytest.mark.slow
@some_rules
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 300)])
def test_odd_shapes(solver: Solver, shape: tuple[int, int]):
    b = normal(5, *shape)
    f = exact_rows(b, GAIN[: shape[0]])
    for dtype in (torch.float32, torch.float64):
        plain, fused, _ = both(solver, Stop(max_iter=6, rtol=1e-3), f, torch.zeros(shape, dtype=dtype))
        assert_agree(plain, fused, 1e-4 if dtype == torch.float32 else 1e-8)


@rules
def test_a_batch_without_rows(solver: Solver):
    plain, fused, launches = both(solver, Stop(max_iter=5), lambda z: 0.5 * z, torch.zeros(0, 4))
    assert fused.z.shape == plain.z.shape == (0, 4)
    assert not launches


@pytest.mark.slow
@some_rules
def test_rows_of_many_parts(solver: Solver):
    """More unknowns than one program takes, with a number that nothing divides."""
    b, gain = rows(1, 9001)
    for dtype in (torch.float32, torch.float64):
        start = torch.zeros_like(b, dtype=dtype)
        plain, fused, launches = both(solver, Stop(max_iter=4, rtol=1e-4), exact_rows(b, gain), start)
        assert_agree(plain, fused, 1e-4 if dtype == torch.float32 else 1e-8)
        assert max(launch.grid[1] for launch in launches) > 1


@pytest.mark.slow
@some_rules
@pytest.mark.parametrize("leaf", [(4, 3), (2, 3, 2)])
def test_tokens_and_their_mask(solver: Solver, leaf: tuple[int, ...]):
    b, gain = rows(3)
    axis = len(leaf) - 2
    mask = torch.ones(3, leaf[axis], dtype=torch.bool)
    mask[0, -1] = mask[1, 0] = False
    stop = Stop(max_iter=9, rtol=1e-3, per="token", token_dim=1 + axis, norm="rms", patience=4)
    layout = Layout(leaves=(leaf,), token_mask=mask)
    plain, fused, _ = both(solver, stop, exact_rows(b, gain), torch.zeros_like(b), layout)
    assert_agree(plain, fused, 1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("magnitude", [1e-200, 1e200])
@pytest.mark.parametrize("name", ["picard", "anderson", "broyden"])
def test_every_magnitude(name: str, magnitude: float):
    b, gain = rows(2)
    f = exact_rows(b * magnitude, gain * 0 + 0.5)
    plain, fused, _ = both(RULES[name], Stop(max_iter=7, rtol=1e-3), lambda z: f(z), torch.zeros_like(b))
    assert torch.equal(plain.status, fused.status)
    assert torch.allclose(plain.z / magnitude, fused.z / magnitude, rtol=1e-7, atol=1e-9)
    assert torch.allclose(plain.residual / magnitude, fused.residual / magnitude, rtol=1e-5, atol=1e-12)


@pytest.mark.slow
@some_rules
def test_alone_is_together_in_any_order(solver: Solver):
    b, gain = rows(3)
    stop = Stop(max_iter=8, rtol=1e-5)
    _, together, _ = both(solver, stop, exact_rows(b, gain), torch.zeros_like(b), order="forward")
    _, reverse, _ = both(solver, stop, exact_rows(b, gain), torch.zeros_like(b), order="reverse")
    assert_same_rows(together, slice(None), reverse, slice(None))
    for i in (0, 2):
        _, alone, _ = both(solver, stop, exact_rows(b[i : i + 1], gain[i : i + 1]), torch.zeros(1, 12).double())
        assert_same_rows(together, slice(i, i + 1), alone, slice(None))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["picard", "anderson"])
def test_rows_that_are_done_leave(name: str):
    b, gain = normal(3, 4, 12), torch.tensor([[0.1], [0.1], [0.2], [0.7]], dtype=torch.float64)

    def f(z: Tensor, b: Tensor, gain: Tensor) -> Tensor:
        return exact_rows(b, gain)(z)

    stop = Stop(max_iter=40, rtol=1e-3, compact="at_once")
    solved = {
        impl: deqlm.solve(f, torch.zeros_like(b), args=(b, gain), solver=RULES[name].replace(impl=impl), stop=stop)
        for impl in ("torch", "triton")
    }
    assert_agree(solved["torch"], solved["triton"], 1e-7)
    assert solved["triton"].cost.row_evaluations < 4 * solved["triton"].cost.evaluations


@pytest.mark.slow
@pytest.mark.parametrize("name", ["picard", "anderson", "broyden"])
def test_rows_that_no_longer_pass_are_taken_up(name: str):
    """Rows see a share of the others' mean: one that has passed no longer does once its neighbour has moved."""

    def f(z: Tensor) -> Tensor:
        own = torch.tensor([[0.1], [0.9]], dtype=z.dtype) * z + 1
        return own + 0.05 * z.flip(0)

    stop = Stop(max_iter=60, rtol=1e-3)
    plain, fused, _ = both(RULES[name], stop, f, torch.zeros(2, 6, dtype=torch.float64))
    assert_agree(plain, fused, 1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:rtol=")
@pytest.mark.parametrize("method", ["fixed_point", "damped", "mixing", "bad"])
def test_pairs_of_all_fields_of_a_stop(method: str):
    """A fifth of the combinations that test_engines.py makes, by turns."""
    solver = METHODS[method]
    with checked(order=2):
        taken = [compare(solver, "triton", replace(stop, max_iter=min(stop.max_iter, 7))) for stop in stops()[::5]]
    assert any(taken)
