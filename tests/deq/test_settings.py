"""Settings of one call stand in place of the stored ones, and evaluation may have a solve of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Chunked, Equilibrium, FixedPoint, Implicit, OneStep, Phantom, Solve, Status, Stop, Unrolled
from deqlm.testing.gradients.layers import TanhLayer, solver_for

F64 = torch.float64
BUDGET = Stop(max_iter=3, rtol=0)


@pytest.fixture
def layer() -> TanhLayer:
    return TanhLayer(4)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, dtype=F64)


def iterated(layer: nn.Module, x: Tensor, count: int, damping: float = 1.0) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(count):
        z = torch.lerp(z, layer(z + x), damping)
    return z


@pytest.mark.parametrize("grad", [True, False])
def test_a_call_has_its_own_stop_and_solver(layer: TanhLayer, x: Tensor, grad: bool) -> None:
    deq = DEQ(layer)
    eq = Equilibrium()
    with torch.set_grad_enabled(grad):
        for stop in (BUDGET, {"max_iter": 3, "rtol": 0.0}):
            y, sol = deq(x, stop=stop, solver="fixed_point", with_stats=True)
            z = eq(lambda z: layer(z + x), torch.zeros_like(x), stop=stop, solver=FixedPoint())
            assert torch.equal(y, z)
            torch.testing.assert_close(y, iterated(layer, x, 3))
            assert sol.status.eq(Status.BUDGET).all()
    assert deq.solve == Solve("anderson", Stop(rtol="auto"))
    assert deq(x, with_stats=True)[1].converged.all()


def test_a_call_has_its_own_gradient(layer: TanhLayer, x: Tensor) -> None:
    deq = DEQ(layer, solver="fixed_point", stop=BUDGET)
    for gradient in ("phantom", OneStep(), {"name": "phantom", "steps": 2}, Unrolled()):
        other = DEQ(layer, solver="fixed_point", stop=BUDGET, gradient=gradient)
        a, b = deq(x, gradient=gradient), other(x)
        assert torch.equal(a, b)
        ga, gb = (torch.autograd.grad(t.sum(), layer.W)[0] for t in (a, b))
        assert torch.equal(ga, gb)
    assert deq.gradient == Implicit()


@pytest.mark.parametrize("train", [True, False])
def test_grad_mode_chooses_the_solve_of_evaluation(layer: TanhLayer, x: Tensor, train: bool) -> None:
    deq = DEQ(layer, solver="fixed_point", stop=BUDGET, evaluation=Solve("broyden", Stop(rtol=1e-9))).train(train)
    eq = Equilibrium(solver="fixed_point", stop=BUDGET, evaluation={"solver": "broyden", "stop": {"rtol": 1e-9}})
    calls = [lambda **o: deq(x, with_stats=True, **o), lambda **o: eq(lambda z: layer(z + x), x, with_stats=True, **o)]
    for call in calls:
        assert call()[1].status.eq(Status.BUDGET).all()
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                sol = call()[1]
                assert sol.converged.all()
                assert sol.solver.name == "broyden"
                assert call(stop=BUDGET)[1].solver.name == "broyden"
                assert call(solver="anderson")[1].solver.name == "anderson"
    assert "evaluation=" in repr(deq)


def test_settings_that_do_not_fit_are_refused_where_they_are_given(layer: TanhLayer, x: Tensor) -> None:
    deq = DEQ(layer)
    with pytest.raises(ValueError, match="gradient 'unrolled' cannot differentiate the steps of solver 'anderson'"):
        deq(x, gradient="unrolled")
    with pytest.raises(ValueError, match="cannot differentiate the steps of solver 'anderson'"):
        DEQ(layer, solver="fixed_point", gradient="unrolled")(x, solver="anderson")
    with pytest.raises(TypeError, match="did you mean 'rtol'"):
        deq(x, stop={"rtl": 1})
    with pytest.raises(KeyError, match="unknown solver 'andersn'"):
        deq(x, solver="andersn")
    with pytest.raises(ValueError, match=r"evaluation must be a Solve\(solver, stop\), a dict of its fields, or None"):
        DEQ(layer, evaluation=BUDGET)
    for make in (lambda **o: DEQ(layer, **o), Equilibrium):
        with pytest.raises(ValueError, match="one without same_value, because evaluation is another solve"):
            make(gradient=Phantom(same_value=True), evaluation=Solve())
    with pytest.raises(ValueError, match="one without same_value, because evaluation is another solve"):
        DEQ(layer, evaluation=Solve())(x, gradient=OneStep(same_value=True))
    with pytest.raises(ValueError, match="per must be 'token' for a causal map"):
        DEQ(nn.Identity(), causal=True, evaluation=Solve(stop=Stop(per="leaf")))


def test_a_causal_layer_in_chunks_has_settings_of_a_call_too() -> None:
    class Causal(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 0.5 * torch.tanh(z.cumsum(1) / torch.arange(1, z.shape[1] + 1, dtype=z.dtype)[:, None])

    deq = DEQ(Causal(), causal=True, mode=Chunked(2), gradient="one_step")
    x = torch.randn(2, 5, 3, dtype=F64)
    _, sol = deq(x, stop=Stop(rtol=1e-9), solver="fixed_point", with_stats=True)
    assert sol.solver.name == "fixed_point"
    assert sol.residual.max() < 1e-8
    with torch.no_grad():
        y, sol = deq(x, stop=Stop(max_iter=0), with_stats=True)
    assert sol.status.eq(Status.BUDGET).all()
    assert y.eq(0).all()


ZERO = [
    Stop(max_iter=0),
    Stop(max_iter=0, rtol=0),
    Stop(max_iter=0, per="leaf"),
]


@pytest.mark.parametrize("stop", ZERO, ids=str)
@pytest.mark.parametrize("solver", sorted({"anderson", "broyden", "fixed_point", "newton", "newton_krylov", "dogleg"}))
def test_no_evaluation_leaves_the_gradient_alone_to_move_the_start(layer: TanhLayer, x: Tensor, stop, solver) -> None:
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    deq = DEQ(layer, solver=solver, stop=stop, gradient=Phantom(3, 0.8))
    y, sol = deq(x, with_stats=True)
    assert len(calls) == sol.cost.evaluations == 3
    torch.testing.assert_close(y, iterated(layer, x, 3, 0.8))
    assert sol.status.eq(Status.BUDGET).all()
    assert sol.steps.eq(0).all()
    assert sol.residual.isinf().all()
    assert not sol.failed.any()
    calls.clear()
    with torch.no_grad():
        z, sol = deq(x, with_stats=True)
    assert not calls
    assert sol.cost == deqlm.Cost()
    assert z.eq(0).all()
    with torch.no_grad():
        same = DEQ(layer, solver=solver, stop=stop, gradient=Phantom(3, 0.8, same_value=True))(x)
    assert torch.equal(same, y)


@pytest.mark.parametrize("gradient", sorted(deqlm.GRADIENTS))
def test_no_evaluation_and_every_gradient(layer: TanhLayer, x: Tensor, gradient: str) -> None:
    y = DEQ(layer, solver=solver_for(gradient), stop=Stop(max_iter=0), gradient=gradient)(x)
    y.sum().backward()
    steps = {"one_step": (1, 1.0), "phantom": (4, 0.8)}.get(gradient, (0, 1.0))
    torch.testing.assert_close(y, iterated(layer, x, *steps))
    assert (layer.W.grad is None) is deqlm.GRADIENTS[gradient].through_steps


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("norm", "max"), ("keep", "best_f"), ("test_every", 2), ("check_every", 2), ("compact", False)),
        *(("trace", True), ("patience", 3), ("divergence", 9.0), ("share", 0.5)),
        ("criterion", deqlm.ReadOut(torch.nn.Identity())),
    ],
)
def test_what_no_evaluation_would_ignore_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field}=.* is not used with max_iter=0, which evaluates nothing"):
        Stop(max_iter=0, **{field: value})


def test_pairs_of_which_one_would_be_ignored_are_refused(layer: TanhLayer, x: Tensor) -> None:
    at_once = Stop(compact="at_once")
    for gradient in ("unrolled", "reversible", "shine"):
        with pytest.raises(ValueError, match="compact must be True or False with"):
            DEQ(layer, solver=solver_for(gradient), stop=at_once, gradient=gradient)
    for watch in ({"states": (1,)}, {"on_evaluation": print}):
        with pytest.raises(ValueError, match="compact must be True or False with states or on_evaluation"):
            DEQ(layer)(x, stop=at_once, **watch)
    with pytest.raises(ValueError, match=r"scale must be left away with Stop\(max_iter=0\)"):
        Equilibrium()(layer, torch.zeros_like(x), x, stop=Stop(max_iter=0), scale=1.0)


def test_a_start_that_is_not_finite_is_told_without_an_evaluation(layer: TanhLayer, x: Tensor) -> None:
    start = torch.zeros_like(x)
    start[1] = torch.nan
    deq = DEQ(layer, stop=Stop(max_iter=0), gradient="one_step", on_failure="ignore")
    y, sol = deq(x, start=start, with_stats=True)
    assert sol.status.tolist() == [Status.BUDGET, Status.NONFINITE, Status.BUDGET]
    y.nan_to_num().sum().backward()
    assert layer.W.grad.isfinite().all()


def test_no_evaluation_within_a_cap_and_never_in_backward(layer: TanhLayer, x: Tensor) -> None:
    assert DEQ(layer, stop=Stop(max_iter=0), memory_cap="1MiB")(x).shape == x.shape
    with pytest.raises(ValueError, match=r"solve.stop.max_iter must be >= 1, got 0"):
        Implicit(solve=Solve(stop=Stop(max_iter=0)))
