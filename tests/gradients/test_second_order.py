"""Second derivatives of the implicit gradient: right, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import Implicit, Solve, Stop
from deqlm.testing.gradients.layers import TanhLayer, wrap

F64 = torch.float64
TIGHT = Stop(max_iter=400, rtol=1e-13)
SECOND = Implicit(solve=Solve("anderson", TIGHT), second_order=True)

State = Tensor | dict[str, Tensor]
Map = Callable[..., State]


def one_layer(z: Tensor, W: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z @ W.T + b + x)


def two_layers(z: Tensor, W: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(torch.nn.functional.silu(z @ W + x) @ W.T + b * z.cos())


def linear(z: Tensor, W: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return z @ W.T + b + x


def tree(z: dict[str, Tensor], W: Tensor, b: Tensor, x: Tensor) -> dict[str, Tensor]:
    first = torch.tanh(z["a"] @ W.T + z["b"].sum(1, keepdim=True) * 0.3 + x)
    return {"a": first, "b": torch.sin(first[:, :1] * b[0] + 0.4 * z["b"])}


def start(f: Map, x: Tensor) -> State:
    return {"a": torch.zeros_like(x), "b": torch.zeros_like(x[:, :1])} if f is tree else torch.zeros_like(x)


def join(z: State) -> Tensor:
    return torch.cat([z["a"], z["b"]], 1) if isinstance(z, dict) else z


def solved(f: Map, W: Tensor, b: Tensor, x: Tensor, gradient: Implicit = SECOND) -> Tensor:
    return join(deqlm.solve(lambda z, x: f(z, W, b, x), start(f, x), args=(x,), stop=TIGHT, gradient=gradient).z)


def iterated(f: Map, W: Tensor, b: Tensor, x: Tensor) -> Tensor:
    z = start(f, x)
    for _ in range(120):
        z = f(z, W, b, x)
    return join(z)


def inputs(n: int = 2) -> list[Tensor]:
    W = torch.randn(n, n, dtype=F64)
    W = 0.5 * W / torch.linalg.matrix_norm(W, 2)
    return [t.requires_grad_() for t in (W, torch.randn(n, dtype=F64), torch.randn(2, n, dtype=F64))]


def linear_loss(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 2, y.numel(), dtype=F64).view_as(y)).sum()


def curved_loss(y: Tensor) -> Tensor:
    return (y.sin() * y).sum() + y.sum() ** 3


def hessian_product(loss: Tensor, at: list[Tensor]) -> tuple[Tensor, ...]:
    """Return H v for a fixed v that mixes weight, bias and input."""
    first = torch.cat([g.flatten() for g in torch.autograd.grad(loss, at, create_graph=True)])
    return torch.autograd.grad(first @ torch.linspace(-1, 1.5, len(first), dtype=F64), at)


@pytest.mark.parametrize(("f", "fast"), [(one_layer, False), (two_layers, True), (tree, True), (linear, True)])
def test_gradgradcheck(f: Map, fast: bool) -> None:
    assert torch.autograd.gradgradcheck(lambda *t: solved(f, *t), inputs(), fast_mode=fast)


@pytest.mark.parametrize("f", [one_layer, two_layers, tree, linear])
@pytest.mark.parametrize("loss", [linear_loss, curved_loss])
def test_hessian_equals_that_of_the_unrolled_iteration(f: Map, loss: Callable[[Tensor], Tensor]) -> None:
    at = inputs(3)
    ours, truth = (hessian_product(loss(y), at) for y in (solved(f, *at), iterated(f, *at)))
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_value_and_first_derivative_are_those_of_first_order() -> None:
    at = inputs(3)
    plain = Implicit(solve=Solve("anderson", TIGHT))
    first, second = solved(one_layer, *at, gradient=plain), solved(one_layer, *at)
    assert torch.equal(first, second)
    for a, b in zip(*(torch.autograd.grad(curved_loss(y), at) for y in (first, second)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_gradient_penalty_through_a_deq() -> None:
    layer = TanhLayer(3)
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)

    def penalty(y: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return g.square().sum()

    def plain(x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(120):
            z = layer(z, x)
        return z

    ours = torch.autograd.grad(penalty(wrap(layer, SECOND, stop=TIGHT)(x)), [layer.W, layer.b])
    truth = torch.autograd.grad(penalty(plain(x)), [layer.W, layer.b])
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_a_failed_row_adds_nothing_to_second_derivatives() -> None:
    layer = TanhLayer(3)
    deq = wrap(layer, SECOND, stop=TIGHT, on_failure="ignore")
    x = torch.randn(3, 3, dtype=F64)

    def second(x: Tensor) -> tuple[Tensor, ...]:
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(deq(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), [layer.W, layer.b])

    bad = x.clone()
    bad[1] = torch.nan
    for a, b in zip(second(bad), second(x[[0, 2]]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_third_derivatives_are_right_or_refused() -> None:
    w, b = (torch.tensor([[v]], dtype=F64, requires_grad=True) for v in (0.7, 0.3))
    x = torch.zeros(1, 1, dtype=F64)

    def third(y: Tensor) -> Tensor:
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), b, create_graph=True)
        return y

    try:
        ours = third(solved(one_layer, w, b, x))
    except RuntimeError:
        return
    torch.testing.assert_close(ours, third(iterated(one_layer, w, b, x)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("f", [one_layer, linear])
@pytest.mark.parametrize("loss", [linear_loss, curved_loss])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1, 2)], ids=["weight", "bias", "input", "all"])
@pytest.mark.parametrize("again", [(0,), (2,), (0, 1, 2)], ids=["by weight", "by input", "by all"])
def test_second_derivatives_are_refused_unless_asked_for(f: Map, loss, wanted: tuple, again: tuple) -> None:
    at = inputs()
    y = solved(f, *at, gradient=Implicit())
    first = torch.autograd.grad(loss(y), [at[i] for i in wanted], create_graph=True)
    with pytest.raises(RuntimeError, match="second_order"):
        torch.autograd.grad(sum(g.sum() for g in first), [at[i] for i in again], allow_unused=True)


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("loss", [linear_loss, curved_loss])
def test_refused_by_way_of_backward(loss: Callable[[Tensor], Tensor]) -> None:
    at = inputs()
    loss(solved(one_layer, *at, gradient=Implicit())).backward(create_graph=True)
    with pytest.raises(RuntimeError, match="second_order"):
        at[0].grad.sum().backward()
    for t in at:
        t.grad = None


@pytest.mark.parametrize("frozen", [(0, 1), (1, 2), (0, 2)], ids=["only input", "only weight", "only bias"])
def test_refused_where_one_thing_only_needs_a_gradient(frozen: tuple[int, int]) -> None:
    at = inputs()
    for i in frozen:
        at[i].requires_grad_(False)
    (free,) = [t for t in at if t.requires_grad]
    (first,) = torch.autograd.grad(linear_loss(solved(one_layer, *at, gradient=Implicit())), free, create_graph=True)
    with pytest.raises(RuntimeError, match="second_order"):
        first.sum().backward()


def test_refused_by_way_of_the_functional_hessian() -> None:
    W, b, x = inputs()
    with pytest.raises(RuntimeError, match="second_order"):
        torch.autograd.functional.hessian(lambda x: linear_loss(solved(one_layer, W, b, x, gradient=Implicit())), x)
