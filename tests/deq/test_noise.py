"""Noise is drawn once per call; buffers move once per call."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Phantom, Stop, Unrolled

GRADIENTS = {"implicit": "implicit", "phantom": "phantom", "unrolled": "unrolled", "one_step": "one_step"}
GRADIENTS["checkpoint"] = Unrolled(checkpoint=True)
GRADIENTS["recursive"] = Unrolled(checkpoint="recursive")
GRADIENTS["again"] = Phantom(checkpoint=True)
GRADIENTS |= {"neumann": "neumann", "shine": "shine"}
every_gradient = pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS.keys())


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    with torch.no_grad():
        for p in layer.parameters():
            if p.dim() > 1:
                p.mul_(0.4)
    return layer


class Recorded(nn.Module):
    """Dropout whose masks are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(6, 6)
        with torch.no_grad():
            self.linear.weight.mul_(0.2)
        self.masks: list[Tensor] = []

    def forward(self, z: Tensor) -> Tensor:
        mask = self.drop(torch.ones_like(z))
        self.masks.append(mask.detach())
        return torch.tanh(self.linear(z)) * mask


def wrap(layer: nn.Module, gradient: object = "implicit", **options: object) -> DEQ:
    return DEQ(layer, gradient=gradient, **{"solver": "fixed_point", "stop": Stop(max_iter=200, rtol=1e-5), **options})


def test_a_stock_transformer_with_dropout_converges_and_trains() -> None:
    layer = transformer().train()
    x = torch.randn(4, 5, 8, requires_grad=True)
    y, sol = DEQ(layer)(x, with_stats=True)
    assert sol.converged.all()
    y.sum().backward()
    assert sol.adjoint.converged.all()
    assert all(p.grad is not None for p in [*layer.parameters(), x])


@every_gradient
@pytest.mark.parametrize("grad", [False, True])
def test_one_mask_per_call_and_a_new_one_in_the_next(gradient: object, grad: bool) -> None:
    layer = Recorded()
    deq = wrap(layer, gradient)
    x = torch.randn(3, 6)
    calls = []
    for _ in range(2):
        layer.masks.clear()
        with torch.set_grad_enabled(grad):
            y = deq(x)
        if grad:
            y.sum().backward()
        assert len(layer.masks) > 2
        assert all(torch.equal(mask, layer.masks[0]) for mask in layer.masks)
        calls.append(layer.masks[0])
    assert not torch.equal(*calls)


def test_batches_of_several_shapes_one_after_the_other() -> None:
    layer = Recorded()
    deq = wrap(layer)
    for batch in (3, 5, 1):
        x = torch.randn(batch, 6, requires_grad=True)
        deq(x).sum().backward()
        assert layer.masks[-1].shape == x.grad.shape == (batch, 6)


@every_gradient
def test_the_generator_advances_as_by_one_evaluation(gradient: object) -> None:
    layer = Recorded()
    x = torch.randn(3, 6)
    torch.manual_seed(5)
    layer(x)
    want = torch.get_rng_state()
    torch.manual_seed(5)
    y = wrap(layer, gradient)(x)
    assert torch.equal(torch.get_rng_state(), want)
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), want)


@every_gradient
def test_noise_drawn_between_forward_and_backward_is_left_alone(gradient: object) -> None:
    layer = Recorded()
    x = torch.randn(3, 6, requires_grad=True)
    found = []
    for between in (0, 7):
        torch.manual_seed(5)
        y = wrap(layer, gradient)(x)
        torch.rand(between)
        state = torch.get_rng_state()
        found.append(torch.autograd.grad(y.sum(), [x, layer.linear.weight]))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradient_is_that_of_the_mask_of_the_call() -> None:
    layer = Recorded().double()
    sharp = Stop(max_iter=300, rtol=1e-12)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    y = wrap(layer, deqlm.Implicit(solve=deqlm.Solve(stop=sharp)), stop=sharp)(x)
    mask = layer.masks[0]
    z = torch.zeros_like(x)
    for _ in range(60):
        z = torch.tanh(layer.linear(z + x)) * mask
    inputs = [x, *layer.linear.parameters()]
    for a, b in zip(*(torch.autograd.grad(t.sum(), inputs) for t in (y, z)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_two_calls_in_one_graph_keep_their_own_noise_under_checkpointing() -> None:
    layer = Recorded()
    deq = wrap(layer, Unrolled(checkpoint=True))
    plain = wrap(layer, Unrolled())
    x = torch.randn(3, 6, requires_grad=True)
    found = []
    for module in (deq, plain):
        torch.manual_seed(3)
        found.append(torch.autograd.grad((module(x) * module(2 * x)).sum(), [x, *layer.linear.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_eval_is_deterministic_and_draws_nothing() -> None:
    layer = transformer()
    deq = DEQ(layer).eval()
    x = torch.randn(2, 5, 8)
    state = torch.get_rng_state()
    assert torch.equal(deq(x), deq(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_without_noise_never_touches_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_rng_state", lambda state: pytest.fail("the generator was set"))
    DEQ(nn.Tanh())(torch.randn(2, 3, requires_grad=True)).sum().backward()


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.linear(z) * 0.2 + 0.1 * self.norm(z))


@every_gradient
@pytest.mark.parametrize("grad", [False, True])
def test_running_statistics_move_once_per_call(gradient: object, grad: bool) -> None:
    layer = Normed().train()
    once = copy.deepcopy(layer)
    deq = wrap(layer, gradient)
    x = torch.randn(16, 6) + 1
    for call in (1, 2):
        with torch.set_grad_enabled(grad):
            y = deq(x)
        once(y.detach() + x)
        for after_backward in (False, True):
            if after_backward and grad:
                y.sum().backward()
            assert layer.norm.num_batches_tracked == call
            torch.testing.assert_close(layer.norm.running_mean, once.norm.running_mean, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(layer.norm.running_var, once.norm.running_var, rtol=1e-3, atol=1e-3)


@every_gradient
def test_gradients_with_batch_normalisation_equal_those_without_running_statistics(gradient: object) -> None:
    layer = Normed().double().train()
    twin = copy.deepcopy(layer)
    twin.norm = nn.BatchNorm1d(6, track_running_stats=False, dtype=torch.float64)
    x = torch.randn(16, 6, dtype=torch.float64)
    ours, theirs = ([p.grad for p in run(m, gradient, x)] for m in (layer, twin))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def run(layer: nn.Module, gradient: object, x: Tensor) -> list[Tensor]:
    wrap(layer, gradient)(x).square().sum().backward()
    return list(layer.parameters())


def test_eval_leaves_buffers_alone() -> None:
    layer = Normed().eval()
    before = copy.deepcopy(layer.state_dict())
    wrap(layer)(torch.randn(4, 6)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@every_gradient
def test_spectral_normalisation_takes_one_power_iteration_per_call(gradient: object) -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)).train()
    once = copy.deepcopy(layer)
    x = torch.randn(4, 6)
    deq = wrap(nn.Sequential(layer, nn.Tanh()), gradient, on_failure="ignore")
    y = deq(x)
    once(x)
    y.sum().backward()
    ours, theirs = (m.parametrizations.weight[0]._u for m in (layer, once))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert layer.parametrizations.weight.original.grad.abs().sum() > 0
