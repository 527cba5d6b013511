"""Tensors that a layer leaves on itself, auxiliary losses above all: their gradient is the whole one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Implicit, OneStep, Phantom, Solve, Stop
from deqlm.testing.gradients.layers import SHARP, TanhLayer, solver_for
from deqlm.wrap.left_behind import left_by

F64 = torch.float64
SHARPLY = Implicit(solve=Solve("anderson", SHARP))


NOTED: list[Tensor] = []


def note(aux: Tensor) -> None:
    NOTED.append(aux)


@dataclass(slots=True)
class Slots:
    loss: Tensor


class WithAux(TanhLayer):
    """Leaves the mean square of what enters the tanh, in one of the places where layers leave such things."""

    def __init__(self, n: int, place: str = "attribute") -> None:
        super().__init__(n)
        self.place, self.aux, self.inner = place, None, nn.Identity()
        self.register_buffer("kept", torch.zeros((), dtype=F64))

    def forward(self, z: Tensor, u: Tensor | float = 0.0) -> Tensor:
        h = z @ self.W.T + self.b + u
        aux = h.square().mean()
        if self.place == "attribute":
            self.aux = aux
        elif self.place == "list":
            self.aux = [aux]
        elif self.place == "dict":
            self.aux = {"loss": aux}
        elif self.place == "submodule":
            self.inner.loss = aux
        elif self.place == "buffer":
            self.kept = aux
        elif self.place == "nested":
            self.aux = {"losses": [(aux,)]}
        elif self.place == "object":
            self.aux = SimpleNamespace(loss=aux)
        elif self.place == "slots":
            self.aux = Slots(aux)
        elif self.place == "deque":
            self.aux = deque([aux])
        elif self.place == "class":
            type(self).shared = aux
        elif self.place == "global":
            note(aux)
        return torch.tanh(h)

    def loss(self) -> Tensor:
        return {
            "attribute": lambda: self.aux,
            "list": lambda: self.aux[0],
            "dict": lambda: self.aux["loss"],
            "submodule": lambda: self.inner.loss,
            "buffer": lambda: self.kept,
            "nested": lambda: self.aux["losses"][0][0],
            "object": lambda: self.aux.loss,
            "slots": lambda: self.aux.loss,
            "deque": lambda: self.aux[-1],
            "class": lambda: self.shared,
            "global": lambda: NOTED[-1],
        }[self.place]()


def truth(layer: WithAux, x: Tensor, also_output: bool) -> list[Tensor]:
    z = torch.zeros_like(x)
    for _ in range(120):
        z = layer(z, x)
    y = layer(z, x)
    loss = layer.loss() + (y.square().sum() if also_output else 0.0)
    return list(torch.autograd.grad(loss, [layer.W, layer.b, x]))


@pytest.mark.parametrize(
    "place",
    ["attribute", "list", "dict", "submodule", "buffer", "nested", "object", "slots", "deque", "class", "global"],
)
@pytest.mark.parametrize("also_output", [False, True])
@pytest.mark.parametrize(
    "gradient", [SHARPLY, SHARPLY.replace(second_order=True), Phantom(80, 1.0), "unrolled"], ids=str
)
def test_an_auxiliary_loss_has_its_whole_gradient(place: str, also_output: bool, gradient: object) -> None:
    layer, x = WithAux(4, place), torch.randn(3, 4, dtype=F64, requires_grad=True)
    want = truth(layer, x, also_output)
    deq = DEQ(
        layer, inject="argument", stop=SHARP, gradient=gradient, solver=solver_for(gradient), start=torch.zeros_like
    )
    y = deq(x)
    loss = layer.loss() + (y.square().sum() if also_output else 0.0)
    got = torch.autograd.grad(loss, [layer.W, layer.b, x])
    torch.testing.assert_close(list(got), want, rtol=1e-8, atol=1e-9)


def test_one_step_is_biased_towards_the_truth() -> None:
    layer, x = WithAux(4), torch.randn(3, 4, dtype=F64, requires_grad=True)
    want = truth(layer, x, also_output=False)[0]
    DEQ(layer, inject="argument", stop=SHARP, gradient=OneStep(), start=torch.zeros_like)(x)
    (got,) = torch.autograd.grad(layer.loss(), layer.W)
    assert torch.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.98


def test_the_functional_interface_knows_a_module_too() -> None:
    layer, x = WithAux(4), torch.randn(3, 4, dtype=F64, requires_grad=True)
    want = truth(layer, x, also_output=False)
    deqlm.solve(layer, torch.zeros_like(x), args=(x,), stop=SHARP, gradient=SHARPLY)
    torch.testing.assert_close(
        list(torch.autograd.grad(layer.loss(), [layer.W, layer.b, x])), want, rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("way", ["hook", "closure", "nonlocal"])
def test_what_functions_leave_has_its_whole_gradient(way: str) -> None:
    layer, x, last = TanhLayer(4), torch.randn(3, 4, dtype=F64), None
    kept: list[Tensor] = []

    def keeps(z: Tensor, u: Tensor) -> Tensor:
        nonlocal last
        y = layer(z, u)
        if way == "closure":
            kept.append(y.square().mean())
        elif way == "nonlocal":
            last = y.square().mean()
        return y

    if way == "hook":
        layer.register_forward_hook(lambda module, args, y: kept.append(y.square().mean()))
    solved = layer if way == "hook" else keeps
    y = deqlm.solve(solved, torch.zeros_like(x), args=(x,), stop=SHARP, gradient=SHARPLY).z
    want = torch.autograd.grad(y.square().mean(), [layer.W, layer.b], retain_graph=True)
    got = torch.autograd.grad(last if way == "nonlocal" else kept[-1], [layer.W, layer.b])
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


def test_a_long_list_is_looked_at_from_its_end() -> None:
    layer = WithAux(4, "global")
    layer.table = [torch.zeros(1)] * 10_000
    layer(torch.zeros(1, 4, dtype=F64))
    assert any(t is NOTED[-1] for t in left_by(layer))
    assert not left_by(None)
    assert not left_by(nn.Linear(2, 2))
    assert not left_by(torch.tanh)


@pytest.mark.parametrize("gradient", ["implicit", "one_step"])
def test_a_layer_that_leaves_nothing_is_not_evaluated_once_more(gradient: str) -> None:
    class Generated(TanhLayer):
        """Holds a weight that was made outside, with a graph."""

    layer, x = Generated(4), torch.randn(3, 4, dtype=F64)
    counts = []
    for made in (False, True):
        if made:
            layer.extra = layer.W * 2
        _, sol = DEQ(layer, gradient=gradient, stop=Stop(rtol=1e-9))(x, with_stats=True)
        counts.append(sol.cost.evaluations)
    _, left = DEQ(WithAux(4), gradient=gradient, stop=Stop(max_iter=5, rtol=0))(x, with_stats=True)
    assert counts[0] == counts[1]
    assert left.cost.evaluations == 7


def test_a_failed_row_spoils_no_auxiliary_loss() -> None:
    layer, x = WithAux(4), torch.randn(3, 4, dtype=F64)
    x[1] = torch.nan
    deq = DEQ(layer, inject="argument", stop=SHARP, gradient=SHARPLY, start=torch.zeros_like, on_failure="ignore")
    deq(x)
    (got,) = torch.autograd.grad(layer.loss(), layer.W)
    assert got.isfinite().all()
