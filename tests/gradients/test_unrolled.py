"""Backpropagation through the solver's steps, against the same steps written by hand."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import FixedPoint, Status, Stop, Unrolled
from deqlm.testing.gradients.layers import TanhLayer, wrap

F64 = torch.float64


def budget(steps: int, **options: float) -> dict:
    return {"solver": FixedPoint(**options), "stop": Stop(max_iter=steps, rtol=0)}


def assert_same(ours: Tensor, truth: Tensor, inputs: list[Tensor]) -> None:
    """Assert equal values and equal gradients for all inputs."""
    torch.testing.assert_close(ours, truth, rtol=1e-13, atol=1e-14)
    g = torch.randn_like(truth)
    for a, b in zip(torch.autograd.grad(ours, inputs, g), torch.autograd.grad(truth, inputs, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("checkpoint", [False, True, "recursive"])
@pytest.mark.parametrize("damping", [1.0, 0.6])
@pytest.mark.parametrize("steps", [1, 7])
def test_budget_equals_the_loop_written_by_hand_start_included(steps: int, damping: float, checkpoint: bool) -> None:
    layer = TanhLayer(4)
    start = nn.Parameter(torch.randn(4, dtype=F64))
    deq = wrap(layer, Unrolled(checkpoint=checkpoint), start=start, **budget(steps, damping=damping))
    x = torch.randn(3, 4, dtype=F64, requires_grad=True)
    z = start.expand(3, 4)
    for _ in range(steps):
        z = (1 - damping) * z + damping * layer(z, x)
    assert_same(deq(x), z, [layer.W, layer.b, x, start])


@pytest.mark.parametrize("checkpoint", [False, True, "recursive"])
def test_warm_up_of_the_language_models(checkpoint: bool) -> None:
    tau, n = 0.8, 4
    layer = TanhLayer(4, size=1.2)
    x = torch.randn(3, 4, dtype=F64, requires_grad=True)
    z = layer(torch.zeros_like(x), x)
    for _ in range(n - 1):
        z = (1 - tau) * z + tau * layer(z, x)
    deq = wrap(layer, Unrolled(checkpoint=checkpoint), **budget(n, damping=tau, first_damping=1.0))
    y, sol = deq(x, with_stats=True)
    assert_same(y, z, [layer.W, layer.b, x])
    assert sol.cost.evaluations == (2 * n if checkpoint == "recursive" else n)
    assert sol.status.tolist() == [deqlm.Status.BUDGET] * 3


@pytest.mark.parametrize("checkpoint", [False, True, "recursive"])
def test_tolerance_differentiates_each_row_up_to_its_own_last_step(checkpoint: bool) -> None:
    layer = TanhLayer(4, size=0.9)
    x = (torch.randn(3, 4, dtype=F64) * torch.tensor([[3.0], [0.1], [1.0]])).requires_grad_()
    deq = wrap(layer, Unrolled(checkpoint=checkpoint), solver=FixedPoint(damping=0.7), stop=Stop(rtol=1e-3))
    y, sol = deq(x, with_stats=True)
    assert sol.converged.all()
    assert len(set(sol.steps.tolist())) > 1
    rows = []
    for i, steps in enumerate(sol.steps.tolist()):
        z = torch.zeros(1, 4, dtype=F64)
        for _ in range(steps - 1):
            z = 0.3 * z + 0.7 * layer(z, x[i : i + 1])
        rows.append(z)
    assert_same(y, torch.cat(rows), [layer.W, layer.b, x])
    torch.testing.assert_close(sol.residual, (layer(y, x) - y).norm(dim=1), rtol=1e-10, atol=0)
    assert (sol.z == y).all()


def test_last_iterate_and_its_residual_even_where_an_earlier_one_was_better() -> None:
    A = torch.tensor([[0.5, 30.0], [0.0, 0.5]], dtype=F64)
    start = torch.tensor([0.0, 1.0], dtype=F64)
    x = torch.zeros(1, 2, dtype=F64, requires_grad=True)
    deq = deqlm.DEQ(
        lambda z, u: z @ A.T + u,
        inject="argument",
        start=start,
        solver="fixed_point",
        gradient="unrolled",
        stop=Stop(max_iter=3, rtol=1e-9, trace=True),
        on_failure="ignore",
    )
    y, sol = deq(x, with_stats=True)
    with torch.no_grad():
        best = deq(x, with_stats=True)[1]
    z = start @ A.T @ A.T
    torch.testing.assert_close(y[0], z, rtol=1e-13, atol=0)
    torch.testing.assert_close(sol.residual[0], (z @ A.T - z).norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sol.residual, sol.trace[-1], rtol=0, atol=0)
    torch.testing.assert_close(sol.relative[0], sol.residual[0] / (z @ A.T).norm(), rtol=1e-12, atol=0)
    assert best.residual == best.trace.min()
    assert best.residual < sol.residual
    assert sol.status.tolist() == [deqlm.Status.MAX_ITER]


def test_a_row_that_diverges_returns_its_best_point() -> None:
    gain = torch.tensor([[0.5], [-30.0]], dtype=F64)
    sol = deqlm.solve(
        lambda z: gain * z + 1,
        torch.zeros(2, 1, dtype=F64),
        solver="fixed_point",
        gradient="unrolled",
        stop=Stop(max_iter=40, rtol=1e-6),
        on_failure="ignore",
    )
    assert sol.status.tolist() == [Status.CONVERGED, Status.DIVERGED]
    assert sol.z[1].item() == 0
    assert sol.residual[1].item() == 1


def test_budget_reports_the_residual_of_the_point_before() -> None:
    layer = TanhLayer(4)
    x = torch.randn(2, 4, dtype=F64)
    sol = wrap(layer, Unrolled(), **budget(3))(x, with_stats=True)[1]
    z = layer(layer(torch.zeros_like(x), x), x)
    assert sol.residual_of == "previous"
    torch.testing.assert_close(sol.residual, (layer(z, x) - z).norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("solver", ["anderson", "broyden", {"name": "anderson", "memory": 1}, deqlm.Broyden()])
def test_solvers_that_write_their_history_are_refused_at_construction(solver: object) -> None:
    with pytest.raises(ValueError, match=r"cannot differentiate the steps of solver '(anderson|broyden)'.*fixed_point"):
        deqlm.DEQ(nn.Linear(2, 2), solver=solver, gradient="unrolled")
    with pytest.raises(ValueError, match="cannot differentiate the steps"):
        deqlm.solve(torch.cos, torch.zeros(1, 1), solver=solver, gradient=Unrolled(checkpoint=True))


def test_a_point_that_is_not_the_last_iterate_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="keep must be 'best'"):
        deqlm.DEQ(nn.Linear(2, 2), solver="fixed_point", gradient="unrolled", stop=Stop(keep="best_f"))


def test_checkpoint_evaluates_again_in_backward_and_stores_less() -> None:
    class Counted(TanhLayer):
        calls = 0

        def forward(self, z: Tensor, u: Tensor) -> Tensor:
            Counted.calls += 1
            return super().forward(super().forward(super().forward(z, u), u), u)

    layer, stored = Counted(8), {}
    x = torch.randn(4, 8, dtype=F64, requires_grad=True)
    for checkpoint in (False, True):
        kept: set[int] = set()

        def keep(t: Tensor, kept: set[int] = kept) -> Tensor:
            kept.add(t.data_ptr())
            return t

        Counted.calls = 0
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = wrap(layer, Unrolled(checkpoint=checkpoint), **budget(6))(x)
        stored[checkpoint] = len(kept)
        assert Counted.calls == 6
        y.sum().backward()
        assert Counted.calls == (12 if checkpoint else 6)
    assert stored[True] < stored[False] / 2


def test_recursive_checkpoints_hold_a_logarithm_of_states_and_repeat_each_evaluation_that_often() -> None:
    class Counted(TanhLayer):
        calls = 0

        def forward(self, z: Tensor, u: Tensor) -> Tensor:
            Counted.calls += 1
            return super().forward(z, u)

    layer, states = Counted(8), {}
    x = torch.randn(4, 8, dtype=F64, requires_grad=True)
    for steps in (4, 16, 64):
        kept: dict[int, weakref.ref] = {}

        def keep(t: Tensor, kept: dict[int, weakref.ref] = kept) -> Tensor:
            if t.shape == x.shape and t is not x:
                kept[id(t)] = weakref.ref(t)
            return t

        Counted.calls = 0
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = wrap(layer, Unrolled(checkpoint="recursive"), **budget(steps))(x)
        states[steps] = sum(ref() is not None for ref in kept.values())
        assert Counted.calls == 2 * steps
        y.sum().backward()
        assert Counted.calls <= 2 * steps + steps * math.log2(steps)
    assert states[64] <= states[16] + 8
    assert states[16] <= states[4] + 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_recursive_checkpoints_have_the_bits_of_all_steps(dtype: torch.dtype) -> None:
    layer = TanhLayer(4, size=0.9).to(dtype)
    x = (torch.randn(3, 4, dtype=dtype) * torch.tensor([[3.0], [0.1], [1.0]], dtype=dtype)).requires_grad_()
    for stop in (Stop(max_iter=6, rtol=0), Stop(rtol=0.05), Stop(rtol=0.05, test_every=3), Stop(max_iter=3, rtol=0.01)):
        found = []
        for checkpoint in (False, "recursive"):
            gradient = Unrolled(checkpoint=checkpoint)
            deq = wrap(layer, gradient, solver=FixedPoint(damping=0.7), stop=stop, on_failure="ignore")
            y, sol = deq(x, with_stats=True)
            found.append((y, sol.residual, sol.status, *torch.autograd.grad(y.sum(), [layer.W, x])))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), stop


@pytest.mark.parametrize("checkpoint", [True, "recursive"])
def test_second_derivatives_go_through_checkpoints(checkpoint: bool | str) -> None:
    W = (0.3 * torch.randn(3, 3, dtype=F64)).requires_grad_()
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)

    def solved(W: Tensor, x: Tensor) -> Tensor:
        f = {"args": (x,), "gradient": Unrolled(checkpoint=checkpoint), **budget(5)}
        return deqlm.solve(lambda z, x: torch.tanh(z @ W.T + x), torch.zeros_like(x), **f).z

    assert torch.autograd.gradgradcheck(solved, (W, x))


def test_no_grad_gives_the_solver_s_point() -> None:
    layer = TanhLayer(4)
    x = torch.randn(2, 4, dtype=F64)
    deq = wrap(layer, Unrolled(), **budget(5, damping=0.7))
    with torch.no_grad():
        assert torch.equal(deq(x), deq(x))
        solved = deq(x)
    assert torch.equal(deq(x).detach(), solved)


def test_a_checkpoint_that_is_no_flag_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpoint must be True, False or 'recursive', got 1"):
        Unrolled(checkpoint=1)
