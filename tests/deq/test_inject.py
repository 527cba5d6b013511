"""How the input enters the map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Stop
from deqlm.wrap.inject import Inject

F64 = torch.float64
SHARP = Stop(max_iter=400, rtol=1e-12)


class Counted(nn.Linear):
    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        Counted.calls += 1
        return super().forward(input)


def test_add() -> None:
    x = torch.randn(2, 3, dtype=F64)
    z = DEQ(lambda t: 0.5 * torch.sin(t), stop=SHARP)(x)
    torch.testing.assert_close(z, 0.5 * torch.sin(z + x), rtol=1e-11, atol=0)


def test_argument() -> None:
    x = torch.randn(2, 3, dtype=F64)
    z = DEQ(lambda z, u: 0.5 * torch.sin(z + 1) * u, inject="argument", stop=SHARP, start=torch.ones_like)(x)
    torch.testing.assert_close(z, 0.5 * torch.sin(z + 1) * x, rtol=1e-11, atol=0)


def test_module_with_another_input_width_is_evaluated_once_per_call() -> None:
    inject = Counted(7, 3, dtype=F64)
    x = torch.randn(2, 7, dtype=F64, requires_grad=True)
    Counted.calls = 0
    deq = DEQ(lambda t: 0.5 * torch.sin(t), inject=inject, stop=SHARP)
    z = deq(x)
    assert Counted.calls == 1
    torch.testing.assert_close(z, 0.5 * torch.sin(z + inject(x)), rtol=1e-11, atol=0)
    z.sum().backward()
    assert all((p.grad != 0).all() for p in (inject.weight, inject.bias, x))
    assert {name for name, _ in deq.named_parameters()} == {"inject.module.weight", "inject.module.bias"}


def test_an_injection_of_one_s_own() -> None:
    class Gate(Inject):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(x)

        def join(self, layer, z, u, args, kwargs):
            return layer(u * z + 1, *args, **kwargs)

    x = torch.randn(2, 3, dtype=F64)
    z = DEQ(lambda t, gain: gain * torch.sin(t), inject=Gate(), stop=SHARP)(x, gain=0.5)
    torch.testing.assert_close(z, 0.5 * torch.sin(torch.sigmoid(x) * z + 1), rtol=1e-11, atol=0)


def test_trees_are_added_leaf_by_leaf() -> None:
    x = {"a": torch.randn(2, 3, dtype=F64), "b": torch.randn(2, dtype=F64)}
    z = DEQ(lambda t: {"a": 0.5 * t["a"].sin() + t["b"][:, None] / 9, "b": 0.5 * t["b"].cos()}, stop=SHARP)(x)
    torch.testing.assert_close(z["b"], 0.5 * (z["b"] + x["b"]).cos(), rtol=1e-11, atol=0)


def test_adding_an_input_of_another_structure_is_explained() -> None:
    deq = DEQ(lambda t: t, start=lambda u: {"a": u})
    with pytest.raises(TypeError, match=r"inject='add' needs x with the structure of z.*inject='argument' or a module"):
        deq(torch.randn(2, 3))


@pytest.mark.parametrize("inject", ["sum", None, 3])
def test_unknown_injections_are_refused(inject: object) -> None:
    with pytest.raises(ValueError, match=r"inject must be 'add', 'argument' or an nn\.Module, got"):
        deqlm.DEQ(nn.Identity(), inject=inject)
