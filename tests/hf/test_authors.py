"""Imported models are the authors' models: a reference on the tensors of their files gives the same numbers."""

from __future__ import annotations

import pytest
import torch

from deqlm import Chunked, Sequential, Simultaneous, Stop
from deqlm.hf import import_implicit_llm
from hf.authors_reference import PHASES, TOKENS, Authors, config, contract, shifted_loss, state

FAMILIES = ("mamba2", "llama")
THEIRS = {"embedding.weight": "word_emb.emb.weight", "head.weight": "criterion.decoder.weight"}


def tokens(batch=3, length=5):
    return torch.randint(TOKENS, (batch, length))


def assert_same_training(model, authors, logits, ids):
    """Compare a forward with gradients: ``logits`` are those of the reference."""
    out = model(ids, labels=ids)
    loss = shifted_loss(logits, ids)
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.loss, loss, rtol=1e-4, atol=1e-4)
    out.loss.backward()
    loss.backward()
    for name, p in model.lm.named_parameters():
        want = authors.w[THEIRS.get(name, name)].grad
        assert (p.grad - want).norm() <= 0.005 * want.norm(), name


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_forwards_are_theirs(family, phase):
    given = config(family, phase=phase)
    tensors = state(given)
    model, _ = import_implicit_llm(given, tensors)
    authors, ids = Authors(given, tensors), tokens()
    assert_same_training(model, authors, authors.free(ids), ids)
    assert all(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_solves_stop_when_theirs_do(family):
    given = config(family)
    tensors = contract(state(given))
    model, _ = import_implicit_llm(given, tensors)
    authors, ids = Authors(given, tensors), tokens()
    assert_same_training(model, authors, authors.free(ids), ids)
    assert model(ids).solution.cost.evaluations == authors.calls < 24 + 4


@pytest.mark.parametrize("family", FAMILIES)
def test_each_sample_keeps_its_best_iterate_as_theirs_do(family):
    given = config(family)
    tensors = state(given, torch.float64)
    for name, t in tensors.items():
        # a map without a fixed point that attracts: residuals fall and rise
        inner = ".mixer." in name and name.endswith("weight_g") and "conv1d" not in name and "out_proj" not in name
        t.mul_(4.0 if inner else 1.0)
    model, _ = import_implicit_llm(given, tensors)
    authors, ids = Authors(given, tensors), tokens()
    logits = authors.free(ids)
    assert len(set(authors.kept)) > 1
    assert min(authors.kept) < 23
    assert_same_training(model, authors, logits, ids)


@pytest.mark.parametrize("iterations", [0, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_warm_up_is_theirs(family, iterations):
    given = config(family)
    given["backbone_config"] |= {"pretrain_steps": 7, "pretrain_iter": iterations}
    tensors = state(given)
    model, _ = import_implicit_llm(given, tensors)
    model.config.deq.phases.apply(model, 6)
    authors, ids = Authors(given, tensors), tokens()
    assert_same_training(model, authors, authors.warm_up(ids), ids)
    model.zero_grad()
    model.config.deq.phases.apply(model, 7)
    authors = Authors(given, tensors)
    assert_same_training(model, authors, authors.free(ids), ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_explicit_models_are_theirs(family):
    given = config(family, "explicit")
    tensors = state(given)
    model, _ = import_implicit_llm(given, tensors)
    authors, ids = Authors(given, tensors), tokens()
    assert_same_training(model, authors, authors.explicit(ids), ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_weight_normalisation(family):
    given = config(family)
    given["backbone_config"]["do_weight_norm"] = False
    tensors = state(given, normed=False)
    model, _ = import_implicit_llm(given, tensors)
    authors, ids = Authors(given, tensors), tokens()
    assert_same_training(model, authors, authors.free(ids), ids)


@pytest.mark.parametrize("mode", [Simultaneous(), Chunked(3), Sequential()], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mode_finds_their_fixed_point(family, mode):
    given = config(family)
    tensors = contract(state(given, torch.float64))
    model, _ = import_implicit_llm(given, tensors)
    ids = tokens()
    with torch.no_grad():
        out = model(ids, mode=mode, stop=Stop(max_iter=500, rtol=1e-12))
    assert out.solution.converged.all()
    torch.testing.assert_close(out.logits, Authors(given, tensors).fixed_point(ids), rtol=1e-6, atol=1e-6)


def test_untied_heads_and_another_base_of_the_wavelengths():
    given = config("llama", tie_embeddings=False)
    tensors = state(given)
    model, _ = import_implicit_llm(given, tensors)
    authors, ids = Authors(given, tensors), tokens()
    assert model.lm.head.weight is not model.lm.embedding.weight
    assert_same_training(model, authors, authors.free(ids), ids)
    given["backbone_config"]["block_cfg"]["rope_theta"] = 1e3
    other, _ = import_implicit_llm(given, tensors)
    assert not torch.allclose(other(ids).logits, model(ids).logits, atol=1e-4)
