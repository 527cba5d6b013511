"""States of any size, f(z) = 0, and points that do not count."""

from __future__ import annotations

import pytest
import torch

from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solve, Status, Stop

TURN = torch.tensor([[0.0, -1.5], [1.5, 0.0]])
METHODS = [Anderson(), Broyden(), Broyden(update="bad")]


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1.0, 1e22, 1e30])
@pytest.mark.parametrize("solver", METHODS, ids=["anderson", "good", "bad"])
def test_products_of_the_history_neither_overflow_nor_vanish(solver, size):
    """An expanding rotation, which no plain iteration solves."""
    stop = Stop(max_iter=30, rtol=1e-5)
    sol = Solve(solver, stop)(lambda z: z @ TURN + size, torch.zeros(2, 2))
    answer = torch.linalg.solve((torch.eye(2) - TURN).T, torch.ones(2))
    assert sol.converged.all()
    assert torch.allclose(sol.z / size, answer.expand(2, 2), rtol=1e-4)


@pytest.mark.parametrize("size", [1e-200, 1e-160, 1e160, 1e200, 1e300])
@pytest.mark.parametrize("impl", ["torch", "auto"])
@pytest.mark.parametrize("solver", [*METHODS, Broyden(line_search="armijo")], ids=["anderson", "good", "bad", "armijo"])
def test_products_of_float64_states_beyond_the_range_of_their_squares(solver, impl, size):
    turn = TURN.double()
    sol = Solve(solver.replace(impl=impl), Stop(max_iter=40, rtol=1e-10))(
        lambda z: z @ turn + size, torch.zeros(2, 2).double()
    )
    answer = torch.linalg.solve((torch.eye(2).double() - turn).T, torch.ones(2).double())
    assert sol.converged.all()
    assert torch.allclose(sol.z / size, answer.expand(2, 2), rtol=1e-8)


@pytest.mark.parametrize("solver", [*METHODS, Broyden(line_search="armijo")], ids=["anderson", "good", "bad", "armijo"])
def test_a_power_of_two_changes_no_bit_at_any_magnitude(solver):
    turn, sols = TURN.double(), []
    for size in (1.0, 2.0**500, 2.0**-500):
        f = lambda z, size=size: z @ turn + size  # noqa: E731
        sols.append(Solve(solver, Stop(max_iter=12, rtol=0))(f, torch.zeros(2, 2).double()).z / size)
    assert torch.equal(sols[0], sols[1])
    assert torch.equal(sols[0], sols[2])


def test_a_map_to_zero_reports_the_true_residual():
    sol = Solve(FixedPoint(), Stop(max_iter=1))(lambda z: 0 * z, torch.full((2, 3), 100.0))
    assert sol.status.tolist() == [Status.MAX_ITER] * 2
    torch.testing.assert_close(sol.residual, torch.full((2,), 100.0 * 3**0.5, dtype=torch.float64))


@pytest.mark.parametrize("solver", [FixedPoint(), *METHODS], ids=["fixed_point", "anderson", "good", "bad"])
@pytest.mark.parametrize("pad", [torch.nan, torch.inf, 1e30])
def test_what_f_makes_of_masked_tokens_reaches_nobody(solver, pad):
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])

    def f(z):
        z = z.view(2, 4, 3)
        z = torch.where(mask[..., None], 0.5 * torch.tanh(z.roll(1, 2)) + 1, pad)
        return z.reshape(2, 12)

    stop = Stop(per="token", rtol=1e-6)
    sol = Solve(solver, stop)(f, torch.zeros(2, 12), Layout(leaves=((4, 3),), token_mask=mask))
    assert sol.converged.all()
    assert (sol.z.view(2, 4, 3)[~mask] == 0).all()
    assert sol.z.isfinite().all()


@pytest.mark.parametrize("scale", [-1.0, torch.nan, torch.inf])
def test_a_scale_must_be_finite_and_not_negative(scale):
    with pytest.raises(ValueError, match="scale must be finite and >= 0"):
        Solve()(lambda z: 0.5 * z, torch.ones(2, 3), Layout(scale=torch.tensor([1.0, scale])))


def test_a_scale_is_refused_where_it_would_be_ignored():
    stop = Stop(keep="best_f")
    with pytest.raises(ValueError, match="scale is not used with keep='best_f'"):
        Solve(FixedPoint(), stop)(lambda z: 0.5 * z, torch.ones(2, 3), Layout(scale=torch.ones(2)))


def test_a_solve_in_inference_mode():
    with torch.inference_mode():
        sol = Solve()(lambda z: 0.5 * z + 1, torch.zeros(2, 3))
    assert sol.converged.all()
