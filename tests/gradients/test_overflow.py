"""What a gradient scaler needs to see, and weights that are cached while a solve runs without a graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import deqlm
from deqlm import DEQ, Implicit, Solve, Stop
from deqlm.testing.gradients.layers import TanhLayer, dense_gradients, solver_for
from gradients.maps import NAMES

F64 = torch.float64


def contraction() -> nn.Sequential:
    layer = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    layer[0].weight.data.mul_(0.5)
    return layer


@pytest.mark.parametrize("name", NAMES)
def test_a_scaler_skips_the_step_whose_loss_overflows_on_its_way_back(name: str) -> None:
    layer = contraction()
    deq = DEQ(layer, gradient=name, solver=solver_for(name), on_failure="ignore")
    head = nn.Linear(6, 1).half().requires_grad_(False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1)
    before = layer[0].weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(head(deq(torch.randn(4, 6)).half()).float().mean()).backward()
        assert not layer[0].weight.grad.isfinite().all()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**28
    assert torch.equal(layer[0].weight, before)


class HalfInside(nn.Module):
    """Computes in float16 within a float32 state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TanhLayer(6, size=0.6, dtype=torch.float32)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = (z.half() @ self.inner.W.half().T).float()
        return torch.tanh(h + self.inner.b + x)


@pytest.mark.parametrize("scale", [1.0, 2.0**14, 2.0**17])
@pytest.mark.parametrize("solve", ["auto", "anderson", "newton", "newton_krylov"])
def test_float16_inside_f_loses_no_row_to_a_scale(scale: float, solve: str) -> None:
    """The solve is linear, so it is done where float16 can hold it; what overflows afterwards is seen."""
    layer, x = HalfInside(), torch.randn(3, 6)
    gradient = Implicit(solve="auto" if solve == "auto" else Solve(solve, Stop(max_iter=100, rtol=2e-3)))
    sol = deqlm.solve(layer, torch.zeros(3, 6), args=(x,), gradient=gradient, stop=Stop(rtol=2e-3), on_failure="ignore")
    (got,) = torch.autograd.grad(scale * sol.z.sum(), layer.inner.b)
    z = sol.z.detach().double()
    _, b, _ = dense_gradients(layer.inner, z, torch.ones_like(z))
    torch.testing.assert_close(got.double() / scale, b, rtol=2e-2, atol=2e-2)


def test_autocast_to_float16_loses_no_row_to_a_scale() -> None:
    layer, x = contraction(), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.float16):
        y, sol = DEQ(layer, on_failure="ignore")(x, with_stats=True)
    found = [torch.autograd.grad(s * y.float().sum(), layer[0].bias, retain_graph=True)[0] / s for s in (1.0, 2.0**10)]
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=1e-2)
    assert sol.adjoint.converged.all()
    (lost,) = torch.autograd.grad(2.0**40 * y.float().sum(), layer[0].weight)
    assert not lost.isfinite().all()


@pytest.mark.filterwarnings("ignore:layer is a function that uses the module")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["module", "function", "solve"])
@pytest.mark.filterwarnings("ignore:layer is a function that uses the module")
def test_weights_cached_while_a_solve_runs_keep_their_gradient(name: str, kind: str) -> None:
    layer = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 5)), nn.Tanh())
    x = 0.5 * torch.randn(3, 5)

    def gradients() -> tuple[Tensor, ...]:
        options = {"gradient": name, "solver": solver_for(name), "on_failure": "ignore"}
        if kind == "solve":
            y = deqlm.solve(lambda z, x: layer(0.5 * z + x), torch.zeros_like(x), args=(x,), **options).z
        else:
            y = DEQ(layer if kind == "module" else lambda z: layer(0.5 * z), **options)(x)
        return torch.autograd.grad(y.square().sum(), list(layer.parameters()))

    want = gradients()
    with parametrize.cached():
        got = gradients()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("mode", ["simultaneous", deqlm.Chunked(2), "sequential", "frontier"])
@pytest.mark.parametrize("name", ["implicit", "phantom", "one_step"])
def test_weights_that_the_probe_of_a_causal_layer_caches_keep_their_gradient(name: str, mode: str) -> None:
    layer = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 5)), nn.Tanh())
    layer[0].weight = 0.5 * layer[0].weight
    deq = DEQ(layer, causal=True, mode=mode, gradient=name, solver="fixed_point", on_failure="ignore")
    x = torch.randn(2, 4, 5)
    want = torch.autograd.grad(deq(x).square().sum(), list(layer.parameters()))
    with parametrize.cached():
        got = torch.autograd.grad(deq(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(got, want)
