"""What is put into a model stays: resized tables, new heads, weights of files that hold only a part."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from hf.tiny import FAMILIES, VOCAB, model, tokens

BOTH = pytest.mark.parametrize("family", FAMILIES)
INITS = ("post_init", "init_weights", "initialize_weights")


def state(made):
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def assert_equal(made, want):
    got = made.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@BOTH
@pytest.mark.parametrize("again", INITS)
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_resized_vocabulary_is_not_drawn_again(family, again, tie, bias):
    made = model(family, tie_word_embeddings=tie, head_bias=bias)
    made.resize_token_embeddings(VOCAB + 9)
    want = state(made)
    getattr(made, again)()
    assert_equal(made, want)


@BOTH
@pytest.mark.parametrize("again", INITS)
def test_a_new_head_is_not_drawn_again(family, again):
    made = model(family, tie_word_embeddings=False)
    made.set_output_embeddings(nn.Linear(16, VOCAB, bias=False))
    made.lm.backbone.norm_f = nn.RMSNorm(16, eps=1e-5)
    made.lm.backbone.norm_f.weight.data.fill_(3.0)
    made.lm.backbone.extra = nn.Linear(2, 2)
    want = state(made)
    getattr(made, again)()
    assert_equal(made, want)


@BOTH
@pytest.mark.parametrize("again", INITS)
def test_a_loaded_model_is_not_drawn_again(family, again, tmp_path):
    model(family, tie_word_embeddings=False).save_pretrained(tmp_path)
    made = AutoModelForCausalLM.from_pretrained(tmp_path)
    made.set_output_embeddings(nn.Linear(16, VOCAB, bias=False))
    want = state(made)
    getattr(made, again)()
    assert_equal(made, want)


@BOTH
def test_a_model_without_weights_is_filled(family):
    want = model(family)
    with torch.device("meta"):
        made = type(want)(want.config)
    made.to_empty(device="cpu")
    for parameter in made.parameters():
        parameter.data.fill_(torch.nan)
    made.init_weights()
    assert all(parameter.isfinite().all() for parameter in made.parameters())
    assert made(tokens(), labels=tokens()).loss.isfinite()


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM])
@BOTH
def test_a_part_of_a_file_loads_where_one_says_so(family, auto, tmp_path):
    made = model(family, tie_word_embeddings=False)
    made.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    held = load_file(path)
    renamed = {name.replace("norm_f", "norm_g"): tensor for name, tensor in held.items()}
    save_file(renamed, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"weights of another model than .*allow_partial=True takes what both have"):
        auto.from_pretrained(tmp_path)
    got, told = auto.from_pretrained(tmp_path, allow_partial=True, output_loading_info=True)
    assert told["missing_keys"] == {"lm.backbone.norm_f.weight"}
    assert told["unexpected_keys"] == {"lm.backbone.norm_g.weight"}
    want = {**made.state_dict(), "lm.backbone.norm_f.weight": torch.ones(16)}
    for name, tensor in got.state_dict().items():
        assert torch.equal(tensor, want[name])
    save_file({**renamed, "lm.embedding.weight": torch.zeros(3, 16)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="another size than the configuration's"):
        auto.from_pretrained(tmp_path, allow_partial=True)
