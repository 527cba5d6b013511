"""The solvers of torchdeq as functions."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from compat.maps import F64, Cell, start
from deqlm import ConvergenceWarning
from deqlm.compat import torchdeq as ours

NAMES = ("fixed_point_iter", "simple_fixed_point_iter", "anderson", "broyden")


@pytest.mark.parametrize("name", NAMES)
def test_a_solver_returns_point_states_and_numbers(name: str) -> None:
    options = {} if name.startswith("simple") else {"tol": 1e-9}
    with torch.no_grad():
        z, states, info = ours.get_solver(name)(Cell(), start(), max_iter=80, indexing=[2, 4], **options)
    assert z.shape == states[0].shape == (4, 6)
    assert len(states) == 2
    assert (info["abs_lowest"] < 1e-6).all()
    assert info["abs_trace"].shape[0] == info["sradius"].shape[0] == 4


@pytest.mark.parametrize("name", NAMES[:2])
def test_plain_iterations_agree_to_the_bit(name: str) -> None:
    theirs = pytest.importorskip("torchdeq.solver")
    cell = Cell()

    def damped(z: Tensor, tau: float = 1.0) -> Tensor:
        return tau * cell(z) + (1 - tau) * z

    options = {} if name.startswith("simple") else {"tol": 1e-12}
    told = nullcontext() if name.startswith("simple") else pytest.warns(ConvergenceWarning, match="MAX_ITER")
    with torch.no_grad():
        with told:
            a, states, info = ours.get_solver(name)(cell, start(), max_iter=9, indexing=[3, 6], **options)
        b, wanted, told = theirs.get_solver(name)(damped, start(), max_iter=9, indexing=[3, 6], **options)
    assert torch.equal(a, b)
    assert all(torch.equal(p, q) for p, q in zip(states, wanted, strict=True))
    assert torch.equal(info["nstep"].float(), told["nstep"].float())
    torch.testing.assert_close(info["abs_lowest"].float(), told["abs_lowest"].float())


def test_a_0d_and_a_1d_start_keep_their_shape() -> None:
    z, _, info = ours.fixed_point_iter(torch.cos, torch.zeros((), dtype=F64), tol=1e-9, max_iter=100)
    assert z.shape == ()
    assert info["nstep"].shape == (1,)
    z, _, info = ours.anderson_solver(torch.cos, torch.zeros(3, dtype=F64), tol=1e-9)
    assert z.shape == info["nstep"].shape == (3,)


def test_return_final_makes_all_evaluations() -> None:
    _, _, info = ours.fixed_point_iter(lambda z: 0.5 * z, torch.ones(2, 3), max_iter=7, return_final=True)
    assert info["nstep"].tolist() == [7.0, 7.0]
    assert info["abs_trace"].shape == (2, 7)


def halved(func, x0: Tensor, max_iter: int = 50, tol: float = 1e-3, stop_mode: str = "abs", share: float = 0.5, **_):
    for _ in range(max_iter):
        x0 = x0 + share * (func(x0) - x0)
    return x0, [], {}


def test_a_solver_of_ones_own_solves_forward_and_backward() -> None:
    ours.register_solver("halved", halved)
    assert ours.get_solver("halved") is halved
    deq = ours.get_deq(f_solver="halved", b_solver="halved", ift=True, f_max_iter=150, b_max_iter=150)
    cell = Cell()
    (z,), info = deq(cell, start(), solver_kwargs={"share": 0.8})
    torch.testing.assert_close(cell(z), z, rtol=1e-6, atol=1e-6)
    z.sum().backward()
    assert cell.a.weight.grad.isfinite().all()
    assert (info["abs_lowest"] < 1e-3).all()


def test_bad_solvers_are_refused() -> None:
    with pytest.raises(ValueError, match="none of torchdeq's own"):
        ours.register_solver("anderson", halved)
    with pytest.raises(TypeError, match="must be a function"):
        ours.register_solver("mine", 3)
    with pytest.raises(KeyError, match="did you mean 'broyden'"):
        ours.get_solver("broydn")
    with pytest.raises(ValueError, match="stop_mode must be"):
        ours.fixed_point_iter(torch.cos, torch.zeros(1, 1), stop_mode="l2")
    with pytest.raises(TypeError, match="taau"):
        ours.fixed_point_iter(torch.cos, torch.zeros(1, 1), taau=0.5)  # type: ignore[call-arg]


def test_final_step_numbers() -> None:
    info = ours.solver_stat_from_final_step(
        [torch.zeros(2, 3), torch.zeros(2, 1)], [torch.ones(2, 3), torch.ones(2, 1)], 5
    )
    assert info["abs_lowest"].tolist() == [2.0, 2.0]
    assert info["nstep"].tolist() == [5.0, 5.0]
    assert info["abs_trace"].shape == (2, 1)
