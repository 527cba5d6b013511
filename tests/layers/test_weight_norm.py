"""Weight normalisation: torch's own as the oracle, once per call with its gradient, nothing but parameters as state."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deqlm.layers import Context, NormedConv1d, NormedLinear, VariationalDropout, fold_weight_norm_, weight_norm_


@pytest.mark.parametrize(
    "plain", [nn.Linear(5, 3), nn.Linear(5, 3, bias=False), nn.Conv1d(4, 6, 3, groups=2, stride=2, padding="valid")]
)
def test_equals_torch(plain):
    plain = copy.deepcopy(plain).double()
    theirs = nn.utils.parametrizations.weight_norm(copy.deepcopy(plain), dim=0)
    ours = weight_norm_(plain)
    with torch.no_grad():
        for g in (ours.weight_g, theirs.parametrizations.weight.original0):
            g.copy_(torch.linspace(0.5, 2, g.numel()).view_as(g))
    x = torch.randn(2, *((5,) if isinstance(ours, NormedLinear) else (4, 9)), dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-13, atol=1e-13)
    original = theirs.parametrizations.weight
    mine = torch.autograd.grad(ours(x).cos().sum(), [ours.weight_g, ours.weight_v])
    want = torch.autograd.grad(theirs(x).cos().sum(), [original.original0, original.original1])
    for a, b in zip(mine, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_only_exact_types_are_replaced_and_shared_layers_stay_shared():
    class Special(nn.Linear):
        pass

    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, Special(3, 3), nn.Embedding(3, 3))})
    weight_norm_(model)
    assert type(model["a"]) is NormedLinear
    assert model["a"] is model["b"][0]
    assert type(model["b"][1]) is Special


def test_folding_restores_plain_layers():
    model = nn.Sequential(nn.Linear(3, 4), nn.Conv1d(2, 2, 3, padding=1, dilation=2, bias=False)).eval()
    want = {name: p.clone() for name, p in model.state_dict().items()}
    weight_norm_(model)
    assert type(model[1]) is NormedConv1d
    fold_weight_norm_(model)
    assert type(model[0]) is nn.Linear
    assert not model[0].training
    assert model[1].dilation == (2,)
    assert model.state_dict().keys() == want.keys()
    for name, p in model.state_dict().items():
        assert torch.equal(p, want[name])


def test_a_zero_row_is_zero_and_not_nan():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    layer = NormedLinear(layer)
    y = layer(torch.ones(1, 3))
    y.sum().backward()
    assert y.isfinite().all()
    assert (layer.weight[0] == 0).all()
    assert layer.weight_v.grad.isfinite().all()


def test_the_weight_is_computed_once_per_call_and_keeps_its_gradient(monkeypatch):
    layer = NormedLinear(nn.Linear(3, 3))
    asked = []
    computed = NormedLinear.effective_weight
    monkeypatch.setattr(NormedLinear, "effective_weight", lambda self: asked.append(1) or computed(self))
    x = torch.randn(2, 4, 3)
    context = Context.open(layer, x)
    with torch.no_grad():  # the solve: evaluations that carry no graph come first
        for _ in range(5):
            context.apply(layer, x)
    context.apply(layer, x).sum().backward()
    assert len(asked) == 1
    assert layer.weight_v.grad is not None
    assert layer.weight_g.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_call_opened_without_grad_does_not_lose_the_gradient_silently(mode):
    layer = NormedLinear(nn.Linear(3, 3))
    x = torch.randn(2, 4, 3)
    with mode():
        context = Context.open(layer, x)
        context.apply(layer, x)
    with pytest.raises(RuntimeError, match="opened without grad mode"):
        context.apply(layer, x)


def test_two_calls_stand_in_one_graph():
    layer = NormedLinear(nn.Linear(3, 3).double())
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    once, twice = (Context.open(layer, x) for _ in range(2))
    y = twice.apply(layer, once.apply(layer, x).tanh())
    layer.zero_grad()
    y.sum().backward()
    held = layer.weight_v.grad.clone()
    layer.zero_grad()
    layer(layer(x).tanh()).sum().backward()
    torch.testing.assert_close(held, layer.weight_v.grad, rtol=1e-12, atol=1e-12)


def test_dropout_has_the_right_mean_and_shares_time():
    dropout = VariationalDropout(0.25, 64)
    mask = dropout.draw(2000, torch.device("cpu"), torch.float32)
    assert mask.shape == (2000, 1, 64)
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(mask.mean() - 1) < 0.01
    x = torch.ones(2, 7, 64)
    y = dropout(x)
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(VariationalDropout(0.0, 64)(x), x)


def test_dropout_follows_torchs_seed():
    dropout, x = VariationalDropout(0.5, 16), torch.ones(2, 3, 16)
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        draws.append(Context.open(dropout, x).apply(dropout, x))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], F.relu(dropout(x)))


@pytest.mark.parametrize("normed", [False, True])
def test_a_context_leaves_out_the_call_of_a_linear_layer_but_not_its_hooks(normed):
    layer = nn.Linear(4, 3)
    block = nn.ModuleList([weight_norm_(layer) if normed else layer])
    x, called = torch.randn(2, 5, 4), []
    with torch.no_grad():
        assert torch.equal(Context.open(block, x).apply(block[0], x), block[0](x))
        block[0].register_forward_hook(lambda *_: called.append(1))
        Context.open(block, x).apply(block[0], x)
    assert called == [1]
