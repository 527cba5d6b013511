"""Weight normalisation: torch's own as the oracle, once per call with its gradient, nothing but parameters as state."""

from __future__ import annotations

import copy
import pickle

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


def merge(layer, want):
    layer.weight.data += want - layer.weight


CHANGES = {
    "data in place": lambda layer, w: layer.weight.data.copy_(w),
    "data added to": merge,
    "data assigned": lambda layer, w: setattr(layer.weight, "data", w.clone()),
    "a view of the data": lambda layer, w: layer.weight.data.reshape(-1).copy_(w.reshape(-1)),
    "rows of the data": lambda layer, w: [row.copy_(new) for row, new in zip(layer.weight.data, w, strict=True)],
    "a tensor": lambda layer, w: setattr(layer, "weight", w),
    "a parameter": lambda layer, w: setattr(layer, "weight", nn.Parameter(w)),
    "in place without grad": lambda layer, w: torch.no_grad()(layer.weight.copy_)(w),
    "in place in inference mode": lambda layer, w: torch.inference_mode()(lambda: layer.weight.copy_(w))(),
    "an output argument": lambda layer, w: torch.no_grad()(torch.add)(w, 0, out=layer.weight),
    "detached": lambda layer, w: layer.weight.detach().copy_(w),
}


@pytest.mark.parametrize("plain", [nn.Linear(5, 3), nn.Conv1d(4, 6, 3, groups=2)], ids=["linear", "conv"])
@pytest.mark.parametrize("how", CHANGES)
def test_a_change_of_the_weight_changes_what_it_is_made_of(how, plain):
    layer = weight_norm_(copy.deepcopy(plain).double())
    want = torch.randn_like(plain.weight, dtype=torch.float64).detach()
    g, v = layer.weight_g, layer.weight_v
    CHANGES[how](layer, want)
    torch.testing.assert_close(layer.weight.detach(), want, rtol=1e-14, atol=1e-14)
    assert layer.weight_g is g
    assert layer.weight_v is v


def test_initialisers_of_torch_and_of_the_layer_work_on_a_computed_weight():
    layer = NormedLinear(nn.Linear(30, 40))
    nn.init.constant_(layer.weight, 2.0)
    assert torch.equal(layer.weight, torch.full((40, 30), 2.0))
    layer.reset_parameters()
    assert 0 < layer.weight.abs().max() <= 30**-0.5 + 1e-6


def test_a_computed_weight_is_else_a_tensor_like_others():
    layer = NormedLinear(nn.Linear(3, 2).double())
    weight = layer.weight
    assert type(weight + 1) is torch.Tensor
    (got,) = torch.autograd.grad(weight.square().sum(), [layer.weight_v], retain_graph=True)
    (want,) = torch.autograd.grad(layer.effective_weight().square().sum(), [layer.weight_v])
    assert torch.equal(got, want)
    for other in (copy.deepcopy(weight.detach()), pickle.loads(pickle.dumps(weight.detach()))):
        assert type(other) is torch.Tensor
        assert torch.equal(other, weight)
    before = {name: p.clone() for name, p in layer.state_dict().items()}
    weight.to(torch.float32).zero_()
    weight.clone().zero_()
    assert all(torch.equal(p, before[name]) for name, p in layer.state_dict().items())
    weight.requires_grad = False
    assert not layer.weight_g.requires_grad
    assert not layer.weight_v.requires_grad
    with pytest.raises(ValueError, match=r"the weight of NormedLinear must be of shape \(2, 3\), got \(3, 2\)"):
        layer.weight = torch.zeros(3, 2)


def test_folding_keeps_hooks_and_what_does_not_learn():
    layer, called = NormedLinear(nn.Linear(3, 2)), []
    layer.register_forward_hook(lambda *_: called.append(1))
    layer.weight_v.requires_grad_(requires_grad=False)
    plain = fold_weight_norm_(layer)
    plain(torch.ones(1, 3))
    assert called == [1]
    assert type(plain) is nn.Linear
    assert not plain.weight.requires_grad
    assert sorted(plain.state_dict()) == ["bias", "weight"]


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
