"""States along the way, callbacks of evaluations and of the backward solve, and the loss that uses them."""

from __future__ import annotations

import copy
import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Chunked, Equilibrium, OneStep, Phantom, States, Status, Stop, fixed_point_correction
from deqlm.testing.gradients.layers import TanhLayer, solver_for

F64 = torch.float64
SOLVERS = ["anderson", "broyden", "dogleg", "fallback", "fixed_point", "newton", "newton_krylov"]


@pytest.fixture
def layer() -> TanhLayer:
    return TanhLayer(4, size=0.9)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, dtype=F64)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("solver", ["anderson", "broyden", "fixed_point"])
def test_a_state_is_the_point_of_a_budget_of_so_many_evaluations(layer, x, solver: str, grad: bool) -> None:
    deq = DEQ(layer, solver=solver, stop=Stop(rtol=1e-9))
    with torch.set_grad_enabled(grad):
        y, sol = deq(x, states=(0, 2, 5, 99), with_stats=True)
        assert torch.equal(y, deq(x))
        assert len(sol.states) == 4
        assert sol.states[0].eq(0).all()
        for k, state in zip((2, 5), sol.states[1:3], strict=True):
            assert torch.equal(state, deq(x, stop=Stop(max_iter=k, rtol=0)))
        assert torch.equal(sol.states[3], y)
    assert sol.states[1].requires_grad is grad


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_shows_its_points_without_another_answer(layer, x, solver: str) -> None:
    seen: list[tuple[int, Tensor, Tensor]] = []
    with torch.no_grad():
        sol = deqlm.solve(
            lambda z: layer(z + x),
            torch.zeros_like(x),
            solver=solver,
            stop=Stop(rtol=1e-9),
            states=(1, 2, 500),
            on_evaluation=lambda k, z, fz: seen.append((k, z, fz)),
        )
        plain = deqlm.solve(lambda z: layer(z + x), torch.zeros_like(x), solver=solver, stop=Stop(rtol=1e-9))
    assert sol.converged.all()
    torch.testing.assert_close(sol.z, plain.z, rtol=1e-8, atol=1e-8)
    assert torch.equal(sol.states[2], sol.z)
    assert [k for k, _, _ in seen] == list(range(1, len(seen) + 1))
    for _, z, fz in seen[:3]:
        torch.testing.assert_close(layer(z + x), fz)
    assert torch.equal(sol.states[0], seen[1][1])


def test_rows_that_are_done_stay_where_they_are(layer) -> None:
    x = torch.randn(3, 4, dtype=F64) * torch.tensor([[1e-9], [1.0], [1.0]], dtype=F64)
    start = torch.zeros_like(x)
    start[0] = DEQ(layer, stop=Stop(rtol=1e-12))(x).detach()[0]
    _, sol = DEQ(layer, stop=Stop(rtol=1e-9))(x, start=start, states=(4,), with_stats=True)
    assert sol.steps[0] == 1
    assert torch.equal(sol.states[0][0], sol.z[0])
    assert not torch.equal(sol.states[0][1], sol.z[1])


@pytest.mark.parametrize("gradient", ["implicit", "phantom", "one_step", "unrolled"])
def test_states_have_gradients_by_the_method_of_the_call(layer, x, gradient: str) -> None:
    solver = "fixed_point"
    deq = DEQ(layer, solver=solver, gradient=gradient, stop=Stop(max_iter=6, rtol=0))
    _, sol = deq(x, states=(2, 4), with_stats=True)
    for k, state in zip((2, 4), sol.states, strict=True):
        alone = deq(x, stop=Stop(max_iter=k, rtol=0))
        assert torch.equal(state, alone)
        ga, gb = (torch.autograd.grad(t.square().sum(), layer.W, retain_graph=True)[0] for t in (state, alone))
        torch.testing.assert_close(ga, gb, rtol=1e-5, atol=1e-7)


def test_states_may_have_no_gradient_or_another_one(layer, x) -> None:
    deq = DEQ(layer, solver="fixed_point", gradient="implicit")
    sol = deq(x, states=States((2,), gradient=None), with_stats=True)[1]
    assert not sol.states[0].requires_grad
    assert sol.cost.evaluations == deq(x, with_stats=True)[1].cost.evaluations
    sol = deq(x, states=States((2,), gradient="one_step"), with_stats=True)[1]
    want = deq(x, stop=Stop(max_iter=2, rtol=0), gradient=OneStep())
    assert torch.equal(sol.states[0], want)


def test_the_same_value_without_grad(layer, x) -> None:
    deq = DEQ(layer, gradient=Phantom(2, same_value=True))
    y, sol = deq(x, states=(2, 99), with_stats=True)
    with torch.no_grad():
        z, plain = deq(x, states=(2, 99), with_stats=True)
    assert torch.equal(y, z)
    assert all(torch.equal(a, b) for a, b in zip(sol.states, plain.states, strict=True))
    assert torch.equal(sol.states[1], y)


@pytest.mark.parametrize("gradient", ["implicit", "one_step", "unrolled"])
def test_a_row_that_failed_gives_its_states_no_gradient(layer, x, gradient: str) -> None:
    x[1] = torch.nan
    eq = Equilibrium(solver="fixed_point", gradient=gradient, on_failure="ignore")
    _, sol = eq(lambda z, x: layer(z + x), torch.zeros_like(x), x, states=(3,), with_stats=True)
    assert sol.status[1] == Status.NONFINITE
    sol.states[0][[0, 2]].sum().backward()
    assert layer.W.grad.isfinite().all()


def test_states_have_the_structure_of_the_state() -> None:
    start = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 1)}
    sol = deqlm.solve(lambda z: {"a": 0.5 * z["a"] + 1, "b": 0.5 * z["b"]}, start, solver="fixed_point", states=[1])
    assert sol.states[0]["a"].eq(1).all()
    copied = copy.deepcopy(sol)
    assert torch.equal(copied.states[0]["a"], sol.states[0]["a"])
    flat = deqlm.solve(torch.cos, torch.zeros(()), states=(1,))
    assert flat.states[0].shape == ()


def test_what_cannot_be_seen_is_refused(layer, x) -> None:
    deq = DEQ(layer)
    with pytest.raises(ValueError, match="states must be a whole number >= 0, got -1"):
        deq(x, states=(-1,))
    for wrong in ((), "12", 3):
        with pytest.raises(ValueError, match=r"states must be numbers of evaluations >= 0, such as \(4, 8\)"):
            deq(x, states=wrong)
    with pytest.raises(ValueError, match="gradient must be one that connects a point"):
        States((1,), gradient="unrolled")
    with pytest.raises(TypeError, match="on_evaluation must be a function, got int"):
        deq(x, on_evaluation=3)
    with pytest.raises(TypeError, match="on_backward must be a function, got int"):
        deq(x, on_backward=3)

    class Causal(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 0.5 * torch.tanh(z)

    causal = DEQ(Causal(), causal=True, mode=Chunked(2))
    with pytest.raises(ValueError, match="mode must be 'simultaneous' with states or on_evaluation"):
        causal(torch.randn(2, 5, 3), states=(1,))
    assert causal(torch.randn(2, 2, 3), states=(1,), with_stats=True)[1].states[0].shape == (2, 2, 3)


def test_an_error_in_a_callback_ends_the_solve(layer, x) -> None:
    def enough(k: int, z: Any, fz: Any) -> None:
        if k == 3:
            raise StopIteration

    with pytest.raises(StopIteration):
        DEQ(layer)(x, on_evaluation=enough)


def test_the_backward_solve_calls_with_its_report(layer, x) -> None:
    told: list[deqlm.Adjoint] = []
    deq = DEQ(layer)
    y, sol = deq(x, on_backward=told.append, with_stats=True)
    assert not told
    y.sum().backward()
    assert told == [sol.adjoint]
    assert told[0].converged.all()
    assert copy.deepcopy(deq).last.adjoint.then is None
    functools.partial(deq, on_backward=told.append)(x).sum().backward()
    assert len(told) == 2


@pytest.mark.parametrize("gradient", sorted(deqlm.GRADIENTS))
def test_a_callback_of_backward_is_called_or_refused(gradient: str, layer, x) -> None:
    told: list[deqlm.Adjoint] = []
    deq = DEQ(layer, gradient=gradient, solver=solver_for(gradient), on_failure="ignore")
    with torch.no_grad():
        deq(x, on_backward=told.append)  # nothing goes back
    try:
        y = deq(x, on_backward=told.append)
    except ValueError as error:
        assert re.match(r"on_backward would never be called: .* solves nothing in backward", str(error))  # noqa: PT017
        assert gradient != "implicit"
        return
    y.sum().backward()
    assert len(told) == 1


@pytest.mark.parametrize(
    ("weights", "factors"),
    [("exponential", [0.25, 0.5, 1]), ("linear", [2 / 3, 5 / 6, 1]), ([3, 0, 1], [3, 0, 1])],
)
def test_the_correction_is_a_weighted_sum(weights, factors) -> None:
    states = [torch.randn(2, 3, requires_grad=True) for _ in factors]
    target = torch.randn(2, 3)
    loss = nn.functional.mse_loss
    options = {} if isinstance(weights, list) else {"gamma": 0.5}
    got = fixed_point_correction(loss, states, target, weights=weights, **options)
    want = sum(f * loss(s, target) for f, s in zip(factors, states, strict=True))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weights": "cubic"}, "weights must be 'exponential', 'linear', 'constant', or 2 numbers"),
        ({"weights": [1.0]}, "or 2 numbers, one for each state"),
        ({"gamma": 2}, r"gamma must be in \[0, 1\], got 2"),
        ({"weights": "constant", "gamma": 0.5}, "gamma must be left away with weights='constant'"),
    ],
)
def test_a_correction_that_would_ignore_something_is_refused(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fixed_point_correction(lambda z: z.sum(), [torch.ones(1), torch.ones(1)], **options)
    with pytest.raises(ValueError, match="states must be at least one state"):
        fixed_point_correction(lambda z: z.sum(), [])
