"""Parametrised weights are computed once per call, with their gradient, whatever makes them."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import deqlm
from deqlm import DEQ, once_per_call_

F64 = torch.float64
KINDS = {
    "linear": (lambda: nn.Linear(4, 4), (3, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 4, 3, padding=1), (3, 4, 5)),
    "conv2d": (lambda: nn.Conv2d(2, 2, 3, padding=1), (3, 2, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 4, 3, padding=1), (3, 4, 5)),
}


class Counted(nn.Module):
    """Halves a weight and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return 0.2 * weight


def counted_layer(kind: str) -> tuple[nn.Sequential, Counted, tuple[int, ...]]:
    make, shape = KINDS[kind]
    layer, counted = make().to(F64), Counted()
    parametrize.register_parametrization(layer, "weight", counted)
    counted.calls = 0
    return nn.Sequential(layer, nn.Tanh()), counted, shape


@pytest.mark.parametrize("gradient", ["implicit", "phantom", "unrolled", "one_step"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_made_once_per_call_and_its_gradient_is_whole(kind: str, gradient: str) -> None:
    layer, counted, shape = counted_layer(kind)
    plain = copy.deepcopy(layer)
    options = {"gradient": gradient, "stop": {"max_iter": 60, "rtol": 1e-10}, "solver": "fixed_point"}
    deq, x = DEQ(layer, **options), torch.randn(shape, dtype=F64)
    deq(x).square().sum().backward()
    assert counted.calls == 1
    counted.calls = 0
    with torch.no_grad():
        deq(x)
    assert counted.calls == 1
    without = DEQ(nn.Sequential(plain), **options)
    for part in without.modules():
        if isinstance(part, parametrize.ParametrizationList):
            part.__class__ = parametrize.ParametrizationList
    without(x).square().sum().backward()
    for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def test_a_changed_weight_is_made_anew_in_the_next_call_and_outside_of_calls() -> None:
    layer, counted, shape = counted_layer("linear")
    deq, x = DEQ(layer), torch.randn(shape, dtype=F64)
    with torch.no_grad():
        before = deq(x)
        layer[0].parametrizations.weight.original.mul_(0.5)
        assert not torch.equal(deq(x), before)
    counted.calls = 0
    for _ in range(3):
        layer(x)
    assert counted.calls == 3


def test_a_checkpoint_inside_the_layer_is_evaluated_again_as_it_was() -> None:
    layer, _, shape = counted_layer("linear")

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer

        def forward(self, z: Tensor) -> Tensor:
            return checkpoint(self.inner, z, use_reentrant=False)

    grads = []
    for module in (layer, Checkpointed()):
        for name in ("phantom", "unrolled"):
            layer.zero_grad()
            deq = DEQ(module, gradient=name, solver="fixed_point", stop={"max_iter": 20, "rtol": 0.0})
            deq(torch.linspace(-1, 1, 12, dtype=F64).reshape(shape)).sum().backward()
            grads.append(layer[0].parametrizations.weight.original.grad.clone())
    torch.testing.assert_close(grads[0], grads[2])
    torch.testing.assert_close(grads[1], grads[3])


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_norms_of_torch_have_right_gradients(norm) -> None:
    layer = nn.Sequential(norm(nn.Linear(3, 3, dtype=F64)), nn.Tanh()).eval()
    deq, x = DEQ(layer, stop={"rtol": 1e-12, "max_iter": 300}), torch.randn(2, 3, dtype=F64)
    parameter = next(p for n, p in layer.named_parameters() if "original" in n)

    def loss() -> Tensor:
        return (0.5 * deq(x)).square().sum()

    loss().backward()
    want, step = torch.zeros_like(parameter), 1e-6
    with torch.no_grad():
        for index in range(parameter.numel()):
            flat = parameter.view(-1)
            flat[index] += step
            up = loss()
            flat[index] -= 2 * step
            want.view(-1)[index] = (up - loss()) / (2 * step)
            flat[index] += step
    torch.testing.assert_close(parameter.grad, want, rtol=1e-5, atol=1e-7)


def test_a_spectral_norm_moves_once_per_call() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Tanh())
    twin = copy.deepcopy(layer)
    _ = twin[0].weight
    DEQ(layer)(torch.randn(2, 6)).sum().backward()
    for a, b in zip(layer.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


def test_threads_have_calls_of_their_own() -> None:
    layer, _, shape = counted_layer("linear")
    deq, x = DEQ(layer), torch.randn(shape, dtype=F64)
    want = deq(x).detach()
    got: list[Tensor] = []

    def work() -> None:
        for _ in range(5):
            with torch.no_grad():
                got.append(deq(x))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(z, want) for z in got)


def test_a_layer_within_a_layer_and_a_function_take_part() -> None:
    layer, counted, shape = counted_layer("linear")
    inner = DEQ(layer)
    outer, x = DEQ(nn.Sequential(inner, nn.Tanh())), torch.randn(shape, dtype=F64)
    outer(x).sum().backward()
    assert counted.calls == 1
    other, counted, shape = counted_layer("linear")
    deqlm.solve(lambda z: other(z) + 1, torch.zeros(shape, dtype=F64)).z.sum().backward()
    assert counted.calls == 1


def test_a_layer_that_nobody_finds_takes_part_once_it_is_told() -> None:
    layer, counted, shape = counted_layer("linear")
    once_per_call_(layer)

    class Holder:
        def __init__(self) -> None:
            self.layers = {"inner": {"deep": {"deeper": {"deepest": layer}}}}

        def __call__(self, z: torch.Tensor) -> torch.Tensor:
            return self.layers["inner"]["deep"]["deeper"]["deepest"](z) + 1

    deqlm.solve(Holder(), torch.zeros(shape, dtype=F64)).z.sum().backward()
    assert counted.calls == 1
