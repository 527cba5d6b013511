"""A solve is not recorded: what torch.jit.trace, make_fx or torch.export would keep are the steps of one input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import deqlm
from deqlm import DEQ, Solve, Stop
from models.families import VOCAB, make

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")

REFUSED = r"a solve cannot be recorded by torch\.jit\.trace, .* Instead, record or compile the layer"
RECORDERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "jit.trace": lambda f, x: torch.jit.trace(f, (x,), check_trace=False),
    "make_fx": lambda f, x: make_fx(f)(x),
    "make_fx before dispatch": lambda f, x: make_fx(f, pre_dispatch=True)(x),
    "export": lambda f, x: torch.export.export(f, (x,), strict=False),
}
every_recorder = pytest.mark.parametrize("record", RECORDERS.values(), ids=RECORDERS)


class Causal(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 0.5 * z.cos()


class Call(nn.Module):
    def __init__(self, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


SOLVES: dict[str, Callable[[], nn.Module]] = {
    "a DEQ": lambda: DEQ(nn.Linear(4, 4)),
    "a budget": lambda: DEQ(nn.Linear(4, 4), stop=Stop(max_iter=3, rtol=0), solver="fixed_point"),
    "within a model": lambda: nn.Sequential(nn.Linear(4, 4), DEQ(nn.Tanh())),
    "a sliding window": lambda: DEQ(
        Causal(), causal=True, mode="frontier", solver="fixed_point", stop=Stop(compact=True)
    ),
    "a function": lambda: Call(lambda x: deqlm.solve(lambda z: 0.5 * z.cos() + x, torch.zeros_like(x)).z),
    "rows": lambda: Call(lambda x: Solve("fixed_point")(lambda z: 0.5 * z.cos(), x.flatten(1)).z),
}


@every_recorder
@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize("grad", [False, True])
def test_a_solve_is_not_recorded(record: Callable[[Any, Tensor], Any], solve: str, grad: bool) -> None:
    module = SOLVES[solve]().requires_grad_(grad)
    x = torch.randn(2, 4, 4)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=REFUSED):
        record(module, x)


@pytest.mark.parametrize("grad", [False, True])
def test_a_model_is_not_recorded(grad: bool) -> None:
    ids = torch.randint(VOCAB, (2, 5))
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=REFUSED):
        torch.jit.trace(lambda ids: make("llama")(ids).logits, (ids,), check_trace=False)


def test_a_recorded_layer_is_solved() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with torch.no_grad():
        layer[0].weight.mul_(0.3)
    x = torch.randn(2, 4)
    recorded = torch.jit.trace(layer, (x,))
    torch.testing.assert_close(DEQ(recorded)(x), DEQ(layer)(x))
