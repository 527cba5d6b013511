"""A wild point of a secant method ends no row: it is refused, and a shorter step is tried."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.rows import assert_same_rows, same_bits
from deqlm_solvers import Anderson, Broyden, Evaluation, Solution, Solve, Solver, Status, Stop
from deqlm_solvers.methods.damping import FLOOR, LEAST, Damping
from deqlm_solvers.native import library

F64 = torch.float64
IMPLS = ["torch", pytest.param("cpp", marks=pytest.mark.skipif(library.load().library is None, reason="not built"))]
METHODS = {
    "anderson": Anderson(),
    "mixing": Anderson(plain_rate=0.0),
    "broyden": Broyden(),
    "bad": Broyden(update="bad"),
    "armijo": Broyden(line_search="armijo"),
}
methods = pytest.mark.parametrize("solver", METHODS.values(), ids=METHODS)
impls = pytest.mark.parametrize("impl", IMPLS)
LEVELS = torch.linspace(0.5, 50, 1000, dtype=F64)[:, None]


def exponential(z: Tensor) -> Tensor:
    """exp(z) = b as a fixed point: from 0 the first step leads to b - 1."""
    return z - (z.exp() - LEVELS[: len(z)].to(z))


def solve(solver: Solver, impl: str, f, z0: Tensor, **stop) -> Solution:
    return Solve(solver.replace(impl=impl), Stop(**{"max_iter": 100, "rtol": 1e-6, **stop}))(f, z0)


@impls
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", ["anderson", "mixing"])
def test_steps_into_overflow_are_shortened(name, impl, dtype):
    sol = solve(METHODS[name], impl, exponential, torch.zeros(1000, 1, dtype=dtype), rtol=1e-4)
    assert sol.converged.all(), sol.summary()
    torch.testing.assert_close(sol.z.double(), LEVELS.log(), rtol=1e-3, atol=1e-4)


@impls
@methods
def test_most_rows_survive_any_method(solver, impl):
    """Before, 556 of these rows ended at their first step."""
    sol = solve(solver, impl, exponential, torch.zeros(1000, 1, dtype=F64), max_iter=200)
    assert sol.converged.sum() >= 990
    assert not (sol.status == Status.NONFINITE).any()


@impls
@methods
@pytest.mark.parametrize("cut", [torch.log, torch.sqrt], ids=["log", "sqrt"])
def test_steps_out_of_the_domain_are_shortened(solver, impl, cut):
    b = torch.linspace(0.3, 2.0, 50, dtype=F64)[:, None]
    f = lambda z: z - 6 * (cut(z) - cut(b))  # noqa: E731
    sol = solve(solver, impl, f, torch.ones(50, 1, dtype=F64))
    assert sol.converged.all(), sol.summary()
    torch.testing.assert_close(sol.z, b, rtol=1e-4, atol=1e-4)


@impls
@methods
def test_a_start_that_is_not_finite_ends_its_row_at_once(solver, impl):
    f = Counted(lambda z: torch.where(z > 1, torch.nan, 0.5 * z))
    sol = solve(solver, impl, f, torch.tensor([[2.0]]))
    assert sol.status.tolist() == [Status.NONFINITE]
    assert f.calls == 1


@impls
@methods
@pytest.mark.parametrize("wild", [torch.nan, torch.inf, 1e30])
def test_a_row_with_nothing_left_to_try_ends(solver, impl, wild):
    """f is wild at every point but the start, so a shorter step is no better."""
    f = Counted(lambda z: torch.where(z == 2, 3 * z, wild))
    sol = solve(solver, impl, f, torch.tensor([[2.0]], dtype=F64), max_iter=500)
    assert sol.status.tolist() == [Status.DIVERGED if wild == 1e30 else Status.NONFINITE]
    assert sol.z.tolist() == [[2.0]]
    assert f.calls <= (80 if solver is METHODS["armijo"] else 20)


@impls
@methods
def test_wild_rows_change_no_bit_of_others(solver, impl):
    """In history, Gram matrix and products there is never a NaN, which would reach others as zero times NaN."""
    angle, turned = torch.tensor([[0.0, -1.2], [1.2, 0.0]], dtype=F64), slice(2, 6)

    def f(z: Tensor, wild: Tensor) -> Tensor:
        tame = torch.stack((z[:, 0] * angle[0, 0] - z[:, 1] * 1.2, z[:, 0] * 1.2 + z[:, 1] * angle[1, 1]), 1) + 1
        outside = (z.abs() > 1.5).any(1, keepdim=True) & wild
        return torch.where(outside, torch.inf - torch.inf, torch.where(wild, z - (z.exp() - 40) * 0.3, tame))

    wild = torch.zeros(8, 1, dtype=torch.bool)
    calm = solve(solver, impl, lambda z: f(z, wild), torch.zeros(8, 2, dtype=F64))
    wild = ~wild
    wild[turned] = False
    mixed = solve(solver, impl, lambda z: f(z, wild), torch.zeros(8, 2, dtype=F64))
    assert_same_rows(calm, turned, mixed, turned)
    assert calm.converged[turned].all()


@impls
@methods
def test_wild_rows_are_the_same_alone_and_anywhere_in_the_batch(solver, impl):
    rows = torch.arange(13)
    f = lambda z, b: z - (z.exp() - b)  # noqa: E731
    together = solve(solver, impl, lambda z: f(z, LEVELS[37 * rows]), torch.zeros(13, 1, dtype=F64), compact=False)
    for i in (0, 5, 12):
        alone = solve(solver, impl, lambda z, i=i: f(z, LEVELS[37 * i]), torch.zeros(1, 1, dtype=F64))
        assert same_bits(together.z[i], alone.z[0])
        assert together.steps[i] == alone.steps[0]
    turned = solve(
        solver, impl, lambda z: f(z, LEVELS[37 * rows.flip(0)]), torch.zeros(13, 1, dtype=F64), compact=False
    )
    assert same_bits(together.z, turned.z.flip(0))


@impls
def test_restarts_go_below_the_floor_while_that_lowers_the_residual(impl):
    """exp(z) = e^9: the step to log must be shortened to a thousandth."""
    f = Counted(lambda z: z - (z.exp() - 8103.0))
    sol = solve(Anderson(), impl, f, torch.zeros(1, 1, dtype=F64))
    assert sol.converged.all()
    steps = [z.item() / 8102 for z in f.points[1:7]]
    assert steps == pytest.approx([1, 0.5, 0.25, 0.125, FLOOR, FLOOR / 4])


def test_a_damping_that_the_user_set_is_never_raised():
    damping = Damping(0.01, torch.zeros(2, 1))
    damping.fit(torch.zeros(2, 1, dtype=torch.bool), None)
    damping.settle(torch.full((2, 1), torch.nan, dtype=F64), torch.tensor([[True], [False]]))
    torch.testing.assert_close(damping.beta, torch.tensor([[0.0025], [0.01]]))
    torch.testing.assert_close(damping.limit, torch.tensor([[0.01], [0.01]]))


@pytest.mark.parametrize(("excess", "refused"), [(1.0, False), (1 + 1e-15, True)])
def test_a_residual_at_the_very_limit_is_acceptable(excess, refused):
    solver, z = Broyden(), torch.zeros(1, 1, dtype=F64)
    _, state = solver.step(z.clone, Evaluation(z, z + 1), solver.init(z))  # type: ignore[arg-type]
    solver.step(z.clone, Evaluation(z, z + solver.GROWTH * 2**-1.1 * excess), state)  # type: ignore[arg-type]
    assert state.damping.restarted.item() is refused


def test_a_refused_restart_is_repeated_once_and_then_spent():
    """The residual does not fall with the step, so a shorter one is no hope."""
    damping, yes = Damping(1.0, torch.zeros(1, 1)), torch.ones(1, 1, dtype=torch.bool)
    betas, spent = [], []
    for _ in range(8):
        damping.fit(~yes, None)
        damping.settle(torch.full((1, 1), 1e9, dtype=F64), yes)
        betas.append(damping.beta.item())
        spent.append(damping.spent.item())
    assert betas[:4] == [0.5, 0.25, 0.125, FLOOR]
    assert betas[4:] == [FLOOR] * 4
    assert spent == [False] * 4 + [True] * 4


def test_points_that_are_not_finite_shorten_the_step_down_to_the_least():
    damping, yes = Damping(1.0, torch.zeros(1, 1)), torch.ones(1, 1, dtype=torch.bool)
    for _ in range(30):
        damping.fit(~yes, None)
        damping.settle(torch.full((1, 1), torch.inf, dtype=F64), yes)
    assert damping.beta.item() == LEAST
    assert damping.spent.item()
    assert damping.limit.item() == FLOOR, "a point that is accepted goes on from the floor"


@pytest.mark.skipif(library.load().library is None, reason="not built")
@methods
def test_the_compiled_step_goes_the_same_way(solver):
    """Point by point, up to where rounding shows."""
    b = torch.tensor([[0.5, 30.0], [3.0, 50.0], [800.0, 2.0]], dtype=F64)
    seen = []
    for impl in ("torch", "cpp"):
        f = Counted(lambda z: z - (z.exp() - b))
        sol = solve(solver, impl, f, torch.zeros(3, 2, dtype=F64), max_iter=16, compact=False)
        seen.append((torch.stack(f.points), sol))
    (plain, one), (fused, two) = seen
    torch.testing.assert_close(plain, fused, rtol=1e-6, atol=1e-9)
    assert torch.equal(one.status, two.status)
