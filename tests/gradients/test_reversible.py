"""The iteration run backwards: the gradient of its steps, its memory, and the bound of its rounding, in one run."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import Reversible, ReversibleIteration, Status, Stop, Unrolled
from deqlm.testing.gradients.layers import TanhLayer, wrap

F64 = torch.float64


def found(layer: TanhLayer, x: Tensor, gradient: deqlm.Gradient, beta: float, stop: Stop) -> tuple[list, int, object]:
    """Return value and gradients, the states that the graph holds, and the solution."""
    kept: dict[int, weakref.ref] = {}

    def keep(t: Tensor) -> Tensor:
        if t.shape == x.shape and t is not x:
            kept[id(t)] = weakref.ref(t)
        return t

    start = torch.zeros_like(x).requires_grad_()
    deq = wrap(layer, gradient, solver=ReversibleIteration(beta=beta), stop=stop, start=lambda u: start)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y, sol = deq(x, with_stats=True)
    held = sum(ref() is not None for ref in kept.values())
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return [y, *torch.autograd.grad(y, [layer.W, layer.b, x, start], g)], held, sol


def worst(ours: list, truth: list) -> float:
    """Return the largest relative error of the gradients for weight, bias and input."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours[1:4], truth[1:4], strict=True))


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("stop", [Stop(max_iter=1, rtol=0), Stop(max_iter=50, rtol=0), Stop(max_iter=400, rtol=1e-9)])
def test_the_gradient_is_that_of_the_steps_start_included(beta: float, stop: Stop) -> None:
    layer = TanhLayer(5, size=0.6)
    x = (torch.randn(3, 5, dtype=F64) * torch.tensor([[3.0], [0.1], [1.0]], dtype=F64)).requires_grad_()
    ours, _, sol = found(layer, x, Reversible(grad_tol=1e-8), beta, stop)
    truth, _, other = found(layer, x, Unrolled(), beta, stop)
    assert torch.equal(ours[0], truth[0])
    assert torch.equal(sol.residual, other.residual)
    if stop.rtol:
        assert len(set(sol.steps.tolist())) > 1
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 0.8])
def test_error_and_memory_keep_their_bounds_in_the_same_run(beta: float) -> None:
    layer = TanhLayer(8, size=0.8, dtype=torch.float32)
    x = torch.randn(2, 8, requires_grad=True)
    for steps in (9, 36, 72):
        stop = Stop(max_iter=steps, rtol=0)
        gradient = Reversible(grad_tol=1e-4)
        ours, held, _ = found(layer, x, gradient, beta, stop)
        truth, all_held, _ = found(layer, x, Unrolled(), beta, stop)
        assert worst(ours, truth) < 10 * gradient.grad_tol
        assert held == 0, "no state is saved by a node of the graph"
        assert all_held > steps / 2
        assert gradient.segment(beta, torch.float32) == (9 if beta == 0.5 else 4)


def test_without_stored_states_rounding_spoils_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = TanhLayer(8, size=0.8, dtype=torch.float32)
    x = torch.randn(2, 8, requires_grad=True)
    stop = Stop(max_iter=60, rtol=0)
    truth = found(layer, x, Unrolled(), 0.5, stop)[0]
    error = worst(found(layer, x, Reversible(), 0.5, stop)[0], truth)
    monkeypatch.setattr(Reversible, "segment", lambda *_: 1000)
    assert worst(found(layer, x, Reversible(), 0.5, stop)[0], truth) > 20 * error


def test_second_backward_second_derivative_and_a_row_that_fails() -> None:
    W = (0.3 * torch.randn(3, 3, dtype=F64)).requires_grad_()
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)

    def solved(W: Tensor, x: Tensor) -> Tensor:
        options = {"args": (x,), "solver": "reversible", "gradient": "reversible", "stop": Stop(max_iter=6, rtol=0)}
        return deqlm.solve(lambda z, x: torch.tanh(z @ W.T + x), torch.zeros_like(x), **options).z

    assert torch.autograd.gradcheck(solved, (W, x))
    assert torch.autograd.gradgradcheck(solved, (W, x))
    y = solved(W, x)
    once, again = (torch.autograd.grad(y.sum(), W, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)


def test_half_precision_states_are_all_stored() -> None:
    assert Reversible().segment(0.5, torch.bfloat16) == 1
    layer = TanhLayer(4, size=0.6).bfloat16()
    x = torch.randn(2, 4, dtype=torch.bfloat16, requires_grad=True)
    stop = Stop(max_iter=12, rtol=0)
    ours, truth = (found(layer, x, gradient, 0.8, stop)[0] for gradient in (Reversible(), Unrolled()))
    assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))


def test_a_map_that_saves_nothing_at_some_steps_is_run_back_past_them() -> None:
    def f(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z + x) if z.detach().norm() < 1.5 else 0.5 * z

    x = torch.randn(3, 4, dtype=F64, requires_grad=True)
    results = []
    for gradient in ("reversible", "unrolled"):
        stop = Stop(max_iter=14, rtol=0)
        z = deqlm.solve(f, torch.zeros(3, 4, dtype=F64), args=(x,), solver="reversible", gradient=gradient, stop=stop).z
        results.append(torch.autograd.grad(z.sum(), x)[0])
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-9)


def test_other_solvers_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"steps of solver 'anderson' backwards; use solver='reversible'"):
        deqlm.DEQ(torch.nn.Linear(2, 2), gradient="reversible")
    with pytest.raises(ValueError, match=r"grad_tol must be in \(0, 1\), got 1\.0"):
        Reversible(grad_tol=1.0)


def test_a_row_that_diverges_returns_its_best_point_and_adds_nothing() -> None:
    gain = torch.tensor([[0.5], [-30.0]], dtype=F64)
    w = torch.ones(1, dtype=F64, requires_grad=True)
    sol = deqlm.solve(
        lambda z, gain: gain * w * z + 1,
        torch.zeros(2, 1, dtype=F64),
        args=(gain,),
        solver="reversible",
        gradient="reversible",
        stop=Stop(max_iter=80, rtol=1e-8),
        on_failure="ignore",
    )
    assert sol.status.tolist() == [Status.CONVERGED, Status.DIVERGED]
    assert torch.autograd.grad(sol.z.sum(), w)[0].item() == pytest.approx(2.0, rel=1e-5)
