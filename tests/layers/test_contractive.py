"""Maps that converge by construction: each condition, and what follows from it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import deqlm
from deqlm.layers import Contractive, MonotoneLinear, lipschitz_bound

F64 = torch.float64
SEEDS = st.integers(0, 2**31)


def stacks(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    one, two = nn.Conv1d(3, 6, 4, padding="same", dilation=2), nn.Conv1d(6, 3, 1)
    wide, grouped = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1, groups=2)
    made: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "linear": (nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5), nn.SiLU()), (3, 5)),
        "conv1d": (nn.Sequential(one, nn.Tanh(), two), (3, 3, 9)),
        "conv2d": (nn.Sequential(wide, nn.ELU(2.0), grouped), (2, 2, 5, 6)),
        "conv3d": (nn.Conv3d(1, 1, 3, padding=1), (2, 1, 3, 4, 3)),
        "strided": (nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.LeakyReLU(-1.5), nn.Flatten()), (2, 2, 5, 5)),
    }
    layer, shape = made[kind]
    return layer.to(F64), shape


def stretch(f: nn.Module, x: Tensor) -> float:
    """Return the largest singular value of the Jacobian of one row."""
    row = x[:1]
    jacobian = torch.func.jacrev(lambda t: f(t).flatten())(row).reshape(-1, row.numel())
    return torch.linalg.matrix_norm(jacobian, 2).item()


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "conv3d", "strided"])
@given(seed=SEEDS, scale=st.floats(0.1, 20))
def test_a_bound_is_never_exceeded(kind: str, seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    layer, shape = stacks(kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale)
    bound = lipschitz_bound(layer)
    x, y = torch.randn(2, *shape, dtype=F64)
    assert (layer(x) - layer(y)).norm() <= bound * (x - y).norm() * (1 + 1e-9)
    assert stretch(layer, x) <= bound * (1 + 1e-9)


def test_a_bound_of_a_linear_layer_is_sharp_and_one_of_a_convolution_nearly() -> None:
    linear = nn.Linear(6, 4, dtype=F64)
    assert lipschitz_bound(linear) == pytest.approx(stretch(linear, torch.zeros(1, 6, dtype=F64)))
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False, dtype=F64)
    nn.init.ones_(conv.weight)
    assert stretch(conv, torch.zeros(1, 1, 9, 9, dtype=F64)) > 0.8 * lipschitz_bound(conv)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "conv3d"])
@given(seed=SEEDS, scale=st.floats(0.5, 30), bound=st.floats(0.05, 0.97))
def test_a_contractive_layer_contracts_and_is_solved(kind: str, seed: int, scale: float, bound: float) -> None:
    torch.manual_seed(seed)
    layer, shape = stacks(kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale)
    made = Contractive(layer, bound)
    assert made.lipschitz_bound() <= bound * (1 + 1e-9)
    deq = deqlm.DEQ(made, solver="fixed_point", stop={"max_iter": 2000, "rtol": 1e-6})
    with torch.no_grad():
        _, sol = deq(torch.randn(shape, dtype=F64), with_stats=True)
    assert sol.converged.all()


def test_a_layer_that_is_small_enough_stays_and_learns() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with torch.no_grad():
        layer[0].weight.mul_(0.1)
    before = layer[0].weight.detach().clone()
    made = Contractive(layer, 0.9)
    torch.testing.assert_close(layer[0].weight, before)
    deq = deqlm.DEQ(copy.deepcopy(made))
    x = torch.randn(8, 4)
    optimizer = torch.optim.SGD(deq.parameters(), lr=1.0)
    losses = []
    for _ in range(30):
        loss = (deq(x) - 3 * x.tanh()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert deq.layer.lipschitz_bound() <= 0.9 * (1 + 1e-5)
    assert losses[-1] < losses[0]


def test_the_gradient_of_the_scaled_weight_is_right() -> None:
    made = Contractive(nn.Sequential(nn.Linear(3, 3, dtype=F64), nn.Tanh()), 0.5)
    backward = deqlm.Implicit(solve={"stop": {"rtol": 1e-12}})
    deq = deqlm.DEQ(made, stop={"rtol": 1e-13, "max_iter": 500}, gradient=backward)
    x, weight = torch.randn(2, 3, dtype=F64), made.layer[0].parametrizations.weight.original
    with torch.no_grad():
        weight.mul_(3)
    deq(x).square().sum().backward()
    want, flat = torch.zeros_like(weight), weight.detach().view(-1)
    for i in range(flat.numel()):
        losses = []
        for step in (1e-6, -2e-6):
            flat[i] += step
            losses.append(deq(x).detach().square().sum())
        flat[i] += 1e-6
        want.view(-1)[i] = (losses[0] - losses[1]).item() / 2e-6
    torch.testing.assert_close(weight.grad, want.detach(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("layer", "bound", "error", "text"),
    [
        (nn.Linear(2, 2), 1.0, ValueError, r"bound must be in \(0, 1\), got 1.0"),
        (nn.Linear(2, 2), 0.0, ValueError, "bound must be"),
        (nn.Tanh(), 0.5, ValueError, "layer must be one with a weight"),
        (nn.Sequential(nn.Linear(2, 2), nn.PReLU()), 0.5, ValueError, "slope is not learnt"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), 0.5, TypeError, "no Lipschitz bound is known of LayerNorm"),
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), 0.5, TypeError, "'circular' padding"),
        (nn.MultiheadAttention(4, 2), 0.5, TypeError, "MultiheadAttention"),
    ],
)
def test_what_has_no_bound_is_refused(layer: nn.Module, bound: float, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Contractive(layer, bound)


@given(seed=SEEDS, width=st.integers(1, 12), margin=st.floats(0.01, 3), alpha=st.floats(0.05, 3), scale=st.floats(0, 5))
def test_a_monotone_layer_has_one_solution_and_its_map_contracts(
    seed: int, width: int, margin: float, alpha: float, scale: float
) -> None:
    torch.manual_seed(seed)
    layer = MonotoneLinear(width, margin=margin, alpha=alpha).to(F64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale)
    weight = layer.weight
    symmetric = torch.eye(width, dtype=F64) - (weight + weight.T) / 2
    assert torch.linalg.eigvalsh(symmetric).min() >= margin * (1 - 1e-9)
    constant = layer.lipschitz_bound()
    assert constant < 1
    largest = torch.linalg.matrix_norm(torch.eye(width, dtype=F64) - weight, 2).item()
    known = math.sqrt(max(0.0, 1 - 4 * alpha * margin / (1 + alpha * largest) ** 2))
    assert constant <= known + 1e-9
    u, v, b = torch.randn(3, 4, width, dtype=F64)
    assert (layer(u, b) - layer(v, b)).norm() <= constant * (u - v).norm() * (1 + 1e-9)


def test_the_solution_is_that_of_the_equation_with_its_gradient() -> None:
    layer = MonotoneLinear(5, margin=0.2).to(F64)
    strict = {"stop": {"rtol": 1e-13, "max_iter": 3000}}
    deq = deqlm.DEQ(layer, inject="argument", gradient=deqlm.Implicit(solve={"stop": {"rtol": 1e-12}}), **strict)
    b = torch.randn(3, 5, dtype=F64)
    z = layer.read(deq(b))
    torch.testing.assert_close(z, torch.relu(z @ layer.weight.T + b), rtol=1e-9, atol=1e-9)
    z.square().sum().backward()
    active = (z > 0).to(F64)
    jacobian = active[:, :, None] * layer.weight.detach()
    eye = torch.eye(5, dtype=F64)
    cotangent = torch.linalg.solve((eye - jacobian).mT, 2 * z.detach()[..., None])[..., 0]
    want = torch.autograd.grad(torch.relu(z.detach() @ layer.weight.T + b), (layer.a, layer.b), cotangent)
    for parameter, wanted in zip((layer.a, layer.b), want, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-7, atol=1e-9)


def test_the_resolvent_is_made_once_per_call() -> None:
    layer = MonotoneLinear(4)
    made = []
    inner = layer._resolvent
    layer._resolvent = lambda: made.append(1) or inner()  # type: ignore[method-assign]
    deqlm.DEQ(layer, inject="argument")(torch.randn(2, 4)).sum().backward()
    assert len(made) == 1


def test_a_bad_width_margin_or_step_is_refused() -> None:
    with pytest.raises(ValueError, match="margin must be > 0"):
        MonotoneLinear(3, margin=0)
    with pytest.raises(ValueError, match="alpha must be > 0"):
        MonotoneLinear(3, alpha=-1)
    with pytest.raises(ValueError, match="width must be a whole number >= 1"):
        MonotoneLinear(0)


@given(seed=SEEDS, rate=st.floats(-30, 30))
def test_a_stable_injection_decays_for_every_parameter(seed: int, rate: float) -> None:
    torch.manual_seed(seed)
    inject = deqlm.StableInject(4).to(F64)
    with torch.no_grad():
        inject.rate.fill_(rate)
    decay = inject.decay
    assert ((decay >= 0) & (decay <= 1)).all()
    if abs(rate) < 3:
        assert ((decay > 0) & (decay < 1)).all()
        deq = deqlm.DEQ(nn.Tanh(), inject=inject, solver="fixed_point", stop={"max_iter": 2000, "rtol": 1e-6})
        assert deq(torch.randn(3, 4, dtype=F64), with_stats=True)[1].converged.all()


def test_a_stable_injection_learns_and_refuses_bad_values() -> None:
    deq = deqlm.DEQ(nn.Tanh(), inject=deqlm.StableInject(3, decay=0.2))
    torch.testing.assert_close(deq.inject.decay, torch.full((3,), 0.2))
    deq(torch.randn(2, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in deq.parameters())
    for decay in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match=r"decay must be in \(0, 1\)"):
            deqlm.StableInject(3, decay=decay)
