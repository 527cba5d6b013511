"""The graph of a call: when there is one, what it holds, and what it leaves alone."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import Tensor, nn

from deqlm.functional import solve
from deqlm.gradients.base import Gradient
from deqlm.testing.check import expect
from deqlm.testing.gradients.layers import F64, SHARP, TanhLayer, gradients, sharp, solver_for, wrap
from deqlm_solvers import Stop

__all__ = [
    "a_start_may_be_the_solution",
    "caller_tensors_are_left_alone",
    "empty_batches_and_rows_pass",
    "eval_mode_has_gradients",
    "grad_mode_decides",
    "half_precision_has_gradients",
    "no_graph_where_nothing_asks",
    "nothing_stays_on_the_module",
    "the_graph_goes_with_its_last_reference",
]


def nothing_stays_on_the_module(gradient: Gradient) -> None:
    """A call and its backward leave no attribute and no hook on modules and parameters."""
    deq = wrap(TanhLayer(4), gradient)

    def look() -> list[tuple[object, ...]]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        of_modules = [(sorted(m.__dict__), *(len(getattr(m, h)) for h in hooks)) for m in deq.modules()]
        of_parameters = [(p._backward_hooks, getattr(p, "_post_accumulate_grad_hooks", None)) for p in deq.parameters()]
        return [*of_modules, *of_parameters]

    before = look()
    deq(torch.randn(2, 4, dtype=F64)).sum().backward()
    after = look()
    expect(after == before, "before {}, after {}", before, after)


class _Watched(TanhLayer):
    """Remembers what it returned, weakly."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.seen: list[weakref.ref[Tensor]] = []

    def forward(self, z: Tensor, u: Tensor | float = 0.0) -> Tensor:
        """Return the next state, (B, N)."""
        out = super().forward(z, u)
        self.seen.append(weakref.ref(out))
        return out


def the_graph_goes_with_its_last_reference(gradient: Gradient) -> None:
    """No output of the layer outlives y and the Solution, with and without a backward, garbage collector off."""
    for backward in (False, True):
        layer = _Watched(4)
        deq = wrap(layer, gradient)
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            y, sol = deq(torch.randn(2, 4, dtype=F64), with_stats=True)
            if backward:
                y.sum().backward()
            del y, sol
            alive = sum(ref() is not None for ref in layer.seen)
        finally:
            if collecting:
                gc.enable()
        expect(alive == 0, "{} of {} outputs are still there, backward={}", alive, len(layer.seen), backward)


def eval_mode_has_gradients(gradient: Gradient) -> None:
    """train() and eval() have the same gradients, to the bit."""
    deq = wrap(TanhLayer(4), gradient)
    x = torch.randn(2, 4, dtype=F64, requires_grad=True)
    train = gradients(deq.train()(x), deq, x)
    evaluated = gradients(deq.eval()(x), deq, x)
    for a, b in zip(train, evaluated, strict=True):
        same = a is not None and b is not None and torch.equal(a, b)
        expect(same, "{} in train(), {} in eval()", a, b)


def grad_mode_decides(gradient: Gradient) -> None:
    """There is a graph where grad mode is on, and none under no_grad and inference_mode."""
    deq = wrap(TanhLayer(4), gradient)
    x = torch.randn(2, 4, dtype=F64)
    expect(deq(x).requires_grad, "no graph with grad mode on")
    with torch.no_grad():
        expect(not deq(x).requires_grad, "a graph under no_grad")
    with torch.inference_mode():
        expect(not deq(x).requires_grad, "a graph under inference_mode")


def no_graph_where_nothing_asks(gradient: Gradient) -> None:
    """There is no graph where neither parameters nor inputs ask for a gradient."""
    deq = wrap(TanhLayer(4), gradient).requires_grad_(False)
    expect(not deq(torch.randn(2, 4, dtype=F64)).requires_grad, "the output asks for a gradient")


def empty_batches_and_rows_pass(gradient: Gradient) -> None:
    """A batch without rows, and rows without unknowns, go through forward and backward."""
    for shape in ((0, 4), (3, 0), (0, 0)):
        layer = TanhLayer(shape[1]) if shape[1] else nn.Identity()
        deq = wrap(layer, gradient, inject="add", on_failure="raise")
        x = torch.randn(*shape, dtype=F64, requires_grad=True)
        y, sol = deq(x, with_stats=True)
        expect(y.shape == shape, "an output {} for an input {}", tuple(y.shape), shape)
        expect(sol.status.shape == shape[:1], "statuses {} for an input {}", tuple(sol.status.shape), shape)
        y.sum().backward()
        expect(x.grad is None or x.grad.shape == shape, "a gradient of another shape for an input {}", shape)
        none = all(p.grad is None or bool((p.grad == 0).all()) for p in deq.parameters())
        expect(none, "parameters have a gradient from an input {}", shape)


def a_start_may_be_the_solution(gradient: Gradient) -> None:
    """A solve that starts at its solution takes one step and has a backward."""
    layer = TanhLayer(4)
    x = torch.randn(2, 4, dtype=F64)
    solution = wrap(layer, gradient)(x).detach()
    deq = wrap(layer, gradient, stop=Stop(rtol=1e-6), start=lambda u: solution)
    y, sol = deq(x, with_stats=True)
    expect(sol.steps.tolist() == [1, 1], "{} steps", sol.steps.tolist())
    y.sum().backward()
    torch.testing.assert_close(y, solution, rtol=1e-10, atol=1e-11)


def half_precision_has_gradients(gradient: Gradient) -> None:
    """A bfloat16 state has a finite gradient, and stays in its dtype."""
    deq = wrap(TanhLayer(4, size=0.3).bfloat16(), gradient, stop=Stop(rtol="auto"), on_failure="ignore")
    x = torch.randn(2, 4).bfloat16().requires_grad_()
    y = deq(x)
    expect(y.dtype == x.dtype, "a state in {} is returned in {}", x.dtype, y.dtype)
    y.sum().backward()
    expect(x.grad is not None and x.grad.isfinite().all(), "the gradient is {}", x.grad)


def caller_tensors_are_left_alone(gradient: Gradient) -> None:
    """Start and arguments of the caller are not written, marked or given a gradient."""
    gradient = sharp(gradient)
    z0, x = torch.zeros(2, 4, dtype=F64), torch.randn(2, 4, dtype=F64)
    before = x.clone()
    sol = solve(TanhLayer(4), z0, args=(x,), gradient=gradient, solver=solver_for(gradient), stop=SHARP)
    sol.z.sum().backward()
    for name, t in (("the start", z0), ("the argument", x)):
        expect(not t.requires_grad, "{} was made to ask for a gradient", name)
        expect(t.grad is None, "{} was given a gradient", name)
    expect((z0 == 0).all() and torch.equal(x, before), "the start or the argument was written")
