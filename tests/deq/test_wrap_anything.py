"""Layers from the shelf, unchanged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Stop

TIGHT = Stop(max_iter=200, rtol=1e-6)


def tamed(module: nn.Module, factor: float = 0.3) -> nn.Module:
    """Scale matrices down so that the map contracts."""
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() > 1:
                p.mul_(factor)
    return module


class CausalConv(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.conv(F.pad(z.transpose(1, 2), (2, 0)))).transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        return self.gru(z)[0]


def transformer() -> nn.Module:
    return tamed(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 0.5)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "transformer": (transformer, (2, 5, 8)),
    "transformer, norm first": (
        lambda: nn.Sequential(
            tamed(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)),
            nn.LayerNorm(8),
        ),
        (2, 5, 8),
    ),
    "causal convolution": (lambda: tamed(CausalConv(4)), (2, 6, 4)),
    "gru": (lambda: tamed(Recurrent(4)), (2, 6, 4)),
    "image convolution": (
        lambda: nn.Sequential(tamed(nn.Conv2d(3, 3, 3, padding=1)), nn.GroupNorm(1, 3), nn.Tanh(), nn.Conv2d(3, 3, 1)),
        (2, 3, 8, 8),
    ),
    "mlp": (lambda: tamed(nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))), (3, 6)),
    "one unknown": (lambda: tamed(nn.Linear(1, 1)), (4, 1)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gradient", ["implicit", "phantom", "unrolled", "one_step"])
def test_fixed_point_and_gradients_of_stock_layers(case: str, gradient: str) -> None:
    make, shape = CASES[case]
    layer = make()
    x = torch.randn(shape, requires_grad=True)
    solver = "fixed_point" if gradient == "unrolled" else "anderson"
    y, sol = DEQ(layer, gradient=gradient, solver=solver, stop=TIGHT)(x, with_stats=True)
    assert sol.converged.all()
    assert y.shape == x.shape
    torch.testing.assert_close(y, layer(y + x), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    for p in [*layer.parameters(), x]:
        assert p.grad is not None
        assert p.grad.isfinite().all()


@pytest.mark.parametrize("case", CASES)
def test_implicit_gradients_equal_those_of_many_plain_iterations(case: str) -> None:
    make, shape = CASES[case]
    layer = make().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    sharp = Stop(max_iter=300, rtol=1e-11)
    z = torch.zeros_like(x)
    for _ in range(150):
        z = layer(z + x)
    assert (layer(z + x) - z).norm() < 1e-10 * z.norm()
    y = DEQ(layer, stop=sharp, gradient=deqlm.Implicit(solve=deqlm.Solve(stop=sharp)))(x)
    inputs = [x, *layer.parameters()]
    ours, truth = (torch.autograd.grad(t.square().sum() + t.sum(), inputs) for t in (y, z))
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_masks_of_a_transformer_go_to_the_layer() -> None:
    layer, length = transformer(), 5
    deq = DEQ(layer, stop=TIGHT)
    x = torch.randn(2, length, 8)
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    y = deq(x, src_key_padding_mask=padding)
    torch.testing.assert_close(y, layer(y + x, src_key_padding_mask=padding), rtol=1e-4, atol=1e-5)
    changed = x.clone()
    changed[1, 3:] += 1.0
    torch.testing.assert_close(deq(changed, src_key_padding_mask=padding)[1, :3], y[1, :3], rtol=1e-4, atol=1e-5)
    causal = nn.Transformer.generate_square_subsequent_mask(length)
    y = deq(x, src_mask=causal, is_causal=True)
    later = x.clone()
    later[:, 3:] += 1.0
    torch.testing.assert_close(deq(later, src_mask=causal, is_causal=True)[:, :3], y[:, :3], rtol=1e-4, atol=1e-5)
    y.sum().backward()


def test_a_module_with_a_dict_state() -> None:
    class Predator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = tamed(nn.Linear(5, 5))

        def forward(self, z: dict[str, Tensor], u: Tensor) -> dict[str, Tensor]:
            joined = torch.tanh(self.mix(torch.cat([z["slow"], z["fast"]], -1)) + u)
            return {"slow": joined[:, :2], "fast": joined[:, 2:]}

    layer = Predator()
    deq = DEQ(layer, inject="argument", start=lambda u: {"slow": u[:, :2] * 0, "fast": u[:, 2:] * 0}, stop=TIGHT)
    x = torch.randn(3, 5, requires_grad=True)
    z, sol = deq(x, with_stats=True)
    assert sol.converged.tolist() == [True] * 3
    assert {name: tuple(t.shape) for name, t in z.items()} == {"slow": (3, 2), "fast": (3, 3)}
    for name, t in layer(z, x).items():
        torch.testing.assert_close(z[name], t, rtol=1e-4, atol=1e-5)
    (z["slow"].sum() + z["fast"].square().sum()).backward()
    assert all(p.grad is not None for p in [*layer.parameters(), x])


def test_the_order_of_the_keys_of_a_dict_means_nothing() -> None:
    start = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 1)}
    z = deqlm.solve(lambda z: {"b": 0.5 * z["b"] + 1, "a": 0.5 * z["a"] - 1}, start, stop=TIGHT).z
    torch.testing.assert_close(z["a"], torch.full((2, 3), -2.0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z["b"], torch.full((2, 1), 2.0), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:layer is a function that uses the module")
def test_a_leaf_without_influence_on_the_loss_is_no_obstacle() -> None:
    layer = tamed(nn.Linear(3, 3))
    x = torch.randn(2, 3, requires_grad=True)
    z = DEQ(lambda t: {"a": torch.tanh(layer(t["a"])), "b": 0.5 * t["b"]}, stop=TIGHT)({"a": x, "b": torch.randn(2, 1)})
    z["a"].sum().backward()
    assert (x.grad != 0).all()


def test_complex_state_against_its_closed_form() -> None:
    a = torch.tensor(0.5 + 0.6j, dtype=torch.complex128, requires_grad=True)
    b = torch.randn(3, 4, dtype=torch.complex128, requires_grad=True)
    z = deqlm.solve(
        lambda z, b: a * z + b,
        torch.zeros(3, 4, dtype=torch.complex128),
        args=(b,),
        stop=Stop(max_iter=300, rtol=1e-13),
        gradient=deqlm.Implicit(solve=deqlm.Solve(stop=Stop(max_iter=300, rtol=1e-13))),
    ).z
    truth = b / (1 - a)
    torch.testing.assert_close(z, truth, rtol=1e-11, atol=1e-12)
    for ours, want in zip(*(torch.autograd.grad((t.abs() ** 2).sum(), [a, b]) for t in (z, truth)), strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-9, atol=1e-10)


def test_a_layer_that_returns_a_tuple_gets_a_clear_error() -> None:
    with pytest.raises(TypeError, match=r"f must return the structure of z, a tensor, got .*tuple"):
        DEQ(nn.GRU(4, 4, batch_first=True))(torch.randn(2, 3, 4))
