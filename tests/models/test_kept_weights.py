"""Weights are made once for all tokens that go on from one cache, as long as they hold."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from deqlm import Stop
from deqlm.layers.kept_weights import KeptWeights
from deqlm.layers.weight_norm import Normed
from models.families import VOCAB, contract, make

BOTH = pytest.mark.parametrize("family", ["mamba2", "llama"])
BUDGET = Stop(max_iter=3, rtol=0)


@pytest.fixture
def made(monkeypatch) -> list[Normed]:
    """Layers whose weight was computed, one entry each time."""
    seen: list[Normed] = []
    make_weight = Normed.effective_weight
    monkeypatch.setattr(Normed, "effective_weight", lambda self: seen.append(self) or make_weight(self))
    return seen


def started(family):
    model = contract(make(family)).eval()
    ids = torch.randint(VOCAB, (2, 5))
    with torch.no_grad():
        return model, ids, model(ids, use_cache=True, stop=BUDGET).cache


def token(model, ids, cache):
    return model(ids[:, :1], cache=cache, use_cache=True, stop=BUDGET, mode="sequential")


@BOTH
@torch.no_grad()
def test_a_token_makes_no_weight_and_changes_no_bit(family, made):
    model, ids, cache = started(family)
    made.clear()
    outs, fresh, anew = [], [], cache
    for _ in range(3):
        outs.append(token(model, ids, cache))
        cache = outs[-1].cache
    assert made == []
    for _ in range(3):
        fresh.append(token(model, ids, anew._replace(kept=None)))
        anew = fresh[-1].cache
    assert made
    for a, b in zip(outs, fresh, strict=True):
        assert torch.equal(a.logits, b.logits)


def in_place(model):
    model.backbone.layers[0].mixer.out_proj.weight_v.mul_(1.5)
    model.backbone.layers[0].mixer.out_proj.weight_g.mul_(1.5)


def replaced(model):
    layer = model.backbone.layers[0].mixer.out_proj
    layer.weight_g = torch.nn.Parameter(2 * layer.weight_g)


def moved(model):
    model.float().double()


def norm_changed(model):
    model.backbone.layers[0].norm.weight.mul_(1.5)


def own_parameter(model):
    next(p for n, p in model.backbone.layers[0].mixer.named_parameters() if "proj" in n or "w" in n).add_(0.1)


@BOTH
@pytest.mark.parametrize("change", [in_place, replaced, moved, norm_changed, own_parameter])
@torch.no_grad()
def test_a_change_of_a_parameter_is_seen(family, change):
    model, ids, cache = started(family)
    token(model, ids, cache)
    change(model)
    assert torch.equal(token(model, ids, cache).logits, token(model, ids, cache._replace(kept=None)).logits)


@torch.no_grad()
def test_a_hook_between_two_tokens_is_called():
    model, ids, cache = started("mamba2")
    calls = []
    model.backbone.layers[0].norm.register_forward_hook(lambda *given: calls.append(given))
    token(model, ids, cache)
    assert calls


def test_nothing_is_kept_with_grad_and_nothing_of_it_used(made):
    model, ids, cache = started("llama")
    made.clear()
    out = token(model, ids, cache)
    assert made
    assert out.cache.kept is None
    out.logits.sum().backward()
    assert model.backbone.layers[0].mixer.wq.weight_v.grad is not None


def test_weights_of_inference_mode_serve_inference_mode_alone():
    model, ids, cache = started("llama")
    with torch.inference_mode():
        inside = token(model, ids, cache)
    with torch.no_grad():
        again = token(model, ids, cache)
    assert torch.equal(inside.logits, again.logits)
    assert not again.cache.layers[0].k.is_inference()


def test_copies_share_them_and_files_hold_none():
    _, _, cache = started("llama")
    assert copy.deepcopy(cache).kept is cache.kept
    assert cache.rows(torch.tensor([1])).kept is cache.kept
    assert pickle.loads(pickle.dumps(KeptWeights()))._made == {}
    assert len(pickle.dumps(cache.kept)) < 200


@torch.no_grad()
def test_a_dispatch_mode_gets_all_operations():
    from deqlm.testing.device import SimulatedDevice

    model, ids, cache = started("llama")
    with SimulatedDevice() as device:
        token(model, ids, cache)
    assert device.launches["aten::linalg_vector_norm"] >= 14
