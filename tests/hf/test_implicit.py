"""An implicit model that starts from an explicit one keeps its blocks, and its injection makes sense at once."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from deqlm.hf import (
    ImplicitLlamaConfig,
    ImplicitLlamaForCausalLM,
    ImplicitMamba2Config,
    ImplicitMamba2ForCausalLM,
    to_implicit,
)
from deqlm.layers.weight_norm import Normed
from deqlm.training import bounded

TINY = {"vocab_size": 13, "hidden_size": 16, "num_hidden_layers": 2, "implicit": False}
MODELS = {
    "mamba2": lambda **more: ImplicitMamba2ForCausalLM(ImplicitMamba2Config(**TINY, state_size=4, head_dim=8, **more)),
    "llama": lambda **more: ImplicitLlamaForCausalLM(
        ImplicitLlamaConfig(**TINY, num_attention_heads=4, num_key_value_heads=2, **more)
    ),
}


@pytest.fixture(params=MODELS)
def explicit(request):
    model = MODELS[request.param](labels="aligned", tie_word_embeddings=False).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("injection", ["first_block", "xavier"])
def test_everything_but_the_injection_is_kept(explicit, injection):
    before = copy.deepcopy(explicit.state_dict())
    made = to_implicit(explicit, deq={"mode": "sequential"}, injection=injection)
    assert all(torch.equal(t, before[name]) for name, t in explicit.state_dict().items())
    assert (type(made), made.dtype, made.training) == (type(explicit), explicit.dtype, explicit.training)
    assert (made.config.implicit, made.config.labels, made.config.deq.mode.name) == (True, "aligned", "sequential")
    assert not explicit.config.implicit
    weights = {f"{name}.weight": m.weight for name, m in made.lm.named_modules() if isinstance(m, Normed)}
    kept = {**made.lm.state_dict(), **weights}
    for name, want in explicit.lm.state_dict().items():
        torch.testing.assert_close(kept[name], want, rtol=1e-14, atol=0)
    assert all(m.weight_v.any() for m in made.modules() if isinstance(m, Normed))


def test_the_first_block_sees_the_embeddings_as_it_did(explicit):
    made = to_implicit(explicit)
    e = explicit.lm.embedding(torch.randint(13, (2, 6)))
    u = made.lm.backbone.project(e)
    ours, theirs = made.lm.backbone.layers[0], explicit.lm.backbone.layers[0]
    got = ours.mixer(ours.norm(torch.zeros_like(e)), u)
    torch.testing.assert_close(got, theirs.mixer(theirs.norm(e)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", MODELS)
def test_tied_heads_stay_tied_and_everything_learns(family):
    made = to_implicit(MODELS[family]())
    assert made.lm.head.weight is made.lm.embedding.weight
    ids = torch.randint(13, (2, 6))
    made(ids, labels=ids).loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in made.parameters())


def train(model, steps, lr):
    """Train on words of four letters in random order, and return the losses."""
    words = torch.tensor([[5, 2, 9, 0], [7, 11, 1, 8], [3, 10, 6, 4]])
    draw = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        ids = words[torch.randint(3, (8, 6), generator=draw)].flatten(1)
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_the_first_losses_are_those_of_a_model_that_knows_something(family):
    model = MODELS[family]()
    assert train(model, 80, 3e-3)[-1] < 0.6
    losses = {}
    for injection in ("first_block", "xavier"):
        made = to_implicit(model, injection=injection)
        bounded().apply(made)
        losses[injection] = train(made, 20, 1e-3)
    assert max(losses["first_block"]) < math.log(13)
    assert losses["first_block"][-1] < losses["first_block"][0] < losses["xavier"][0]


def test_bad_input_is_refused(explicit):
    with pytest.raises(ValueError, match="model must be explicit"):
        to_implicit(to_implicit(explicit))
    with pytest.raises(ValueError, match="injection must be one of first_block, xavier, got 'zero'"):
        to_implicit(explicit, injection="zero")
    with pytest.raises(TypeError, match="did you mean 'mode'"):
        to_implicit(explicit, deq={"mod": "sequential"})
