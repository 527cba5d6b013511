"""torch.autograd.functional, the double-backward trick, and learned cotangents: right, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.autograd.functional as AF
from torch import Tensor

from deqlm import Gradient, Implicit, Phantom, Solve
from deqlm.testing.gradients.layers import SHARP, TanhLayer, wrap

F64 = torch.float64
FIRST = Implicit(solve=Solve("anderson", SHARP))
SECOND = FIRST.replace(second_order=True)
METHODS = [FIRST, SECOND, Implicit(solve=Solve("newton", SHARP), second_order=True), Phantom(80, 1.0)]

Function = Callable[[Tensor], Tensor]


def curved(f: Function) -> Function:
    return lambda x: f(x).square().sum()


def by_double_backward(f: Function, x: Tensor, v: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = f(x)
    u = torch.zeros_like(y, requires_grad=True)
    (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
    return torch.autograd.grad(pulled, u, v)[0]


OPERATIONS: dict[str, Callable[[Function, Tensor, Tensor], Tensor]] = {
    "jacobian": lambda f, x, v: AF.jacobian(f, x),
    "vjp": lambda f, x, v: AF.vjp(f, x, v)[1],
    "jvp": lambda f, x, v: AF.jvp(f, x, v)[1],
    "strict jvp": lambda f, x, v: AF.jvp(f, x, v, strict=True)[1],
    "double backward": by_double_backward,
    "hessian": lambda f, x, v: AF.hessian(curved(f), x),
    "vhp": lambda f, x, v: AF.vhp(curved(f), x, v)[1],
    "hvp": lambda f, x, v: AF.hvp(curved(f), x, v)[1],
    "strict hvp": lambda f, x, v: AF.hvp(curved(f), x, v, strict=True)[1],
}
SECOND_ORDER = {"hessian", "vhp", "hvp", "strict hvp"}


def iterated(layer: TanhLayer, x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(120):
        z = layer(z, x)
    return z


@pytest.mark.parametrize("gradient", METHODS, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_right_or_refused(name: str, gradient: Gradient) -> None:
    layer = TanhLayer(3)
    x, v = torch.randn(2, 2, 3, dtype=F64)
    deq = wrap(layer, gradient)
    if name in SECOND_ORDER and gradient is FIRST:
        with pytest.raises(RuntimeError, match="second_order"):
            OPERATIONS[name](deq, x, v)
        return
    got, want = OPERATIONS[name](deq, x, v), OPERATIONS[name](lambda t: iterated(layer, t), x, v)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gradient", METHODS, ids=str)
def test_a_learned_cotangent_gets_its_gradient(gradient: Gradient) -> None:
    layer = TanhLayer(3)
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    u = torch.randn(2, 3, dtype=F64, requires_grad=True)

    def learned(y: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(y, [layer.b], u, create_graph=True)
        return torch.autograd.grad(pulled.sin().sum(), u)[0]

    torch.testing.assert_close(learned(wrap(layer, gradient)(x)), learned(iterated(layer, x)), rtol=1e-9, atol=1e-10)


def test_a_learned_cotangent_with_other_things_that_learn_is_refused_in_first_order() -> None:
    layer = TanhLayer(3)
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    u = torch.randn(2, 3, dtype=F64, requires_grad=True)
    (pulled,) = torch.autograd.grad(wrap(layer, FIRST)(x), x, u, create_graph=True)
    with pytest.raises(RuntimeError, match="second_order"):
        pulled.square().sum().backward()


def test_products_of_a_cotangent_may_be_differentiated_again_and_again() -> None:
    layer = TanhLayer(3)
    x, u, v = torch.randn(3, 2, 3, dtype=F64).unbind()

    def again(f: Function) -> Tensor:
        """Return J^T J J^T u, by derivatives in cotangents alone."""
        t, a = x.clone().requires_grad_(), u.clone().requires_grad_()
        (pulled,) = torch.autograd.grad(f(t), t, a, create_graph=True)
        b = torch.ones_like(pulled, requires_grad=True)
        (pushed,) = torch.autograd.grad(pulled, a, b, create_graph=True)
        return torch.autograd.grad(pushed, b, v)[0]

    torch.testing.assert_close(again(wrap(layer, FIRST)), again(lambda t: iterated(layer, t)), rtol=1e-9, atol=1e-10)
