"""Models without a head, and the states that a call returns on request."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, pipeline

from deqlm import Chunked, Stop
from hf.test_model import set_checkpointing
from hf.tiny import BASES, FAMILIES, MODELS, converging, model, tokens
from hf.words import tokenizer

BOTH = pytest.mark.parametrize("family", FAMILIES)
TIGHT = Stop(rtol=1e-10, max_iter=300, per="token")


@BOTH
@pytest.mark.parametrize("grad", [False, True])
def test_hidden_states_are_embeddings_and_fixed_point(family, grad):
    made, ids = model(family), tokens()
    with torch.set_grad_enabled(grad):
        out = made(ids, output_hidden_states=True)
    first, last = out.hidden_states
    assert torch.equal(first, made.get_input_embeddings()(ids))
    assert torch.equal(last, out.last_hidden_state)
    assert torch.equal(made.lm.head(last), out.logits)
    assert made(ids).hidden_states is None
    if grad:
        first.retain_grad()
        out.logits.sum().backward()
        assert first.grad.abs().sum() > 0


@BOTH
@pytest.mark.parametrize("mode", [None, Chunked(3)])
def test_hidden_states_of_the_explicit_twin_are_those_of_its_blocks(family, mode):
    made, ids = model(family, implicit=False, num_hidden_layers=3), tokens()
    with torch.no_grad():
        states = made(ids, output_hidden_states=True, mode=mode).hidden_states
        backbone = made.lm.backbone
        for block, before, after in zip(backbone.layers, states, states[1:-1], strict=False):
            torch.testing.assert_close(block(before), after)
        torch.testing.assert_close(backbone.norm_f(backbone.layers[-1](states[-2])), states[-1])
    assert len(states) == 4


@BOTH
@pytest.mark.parametrize("implicit", [True, False])
def test_hidden_states_of_generated_tokens(family, implicit):
    made, ids = model(family, implicit=implicit), tokens()
    options = {"output_hidden_states": True, "return_dict_in_generate": True, "pad_token_id": 0}
    made.lm.failures = made.lm.failures.__class__("ignore")
    out = made.generate(ids, max_new_tokens=3, do_sample=False, **options)
    count = 2 if implicit else 3
    assert [[state.shape for state in states] for states in out.hidden_states] == [
        [(2, 7, 16)] * count,
        *[[(2, 1, 16)] * count] * 2,
    ]


@BOTH
def test_the_configuration_may_ask_for_hidden_states(family):
    made = model(family)
    made.config.output_hidden_states = True
    assert len(made(tokens()).hidden_states) == 2
    assert made(tokens(), output_hidden_states=False).hidden_states is None


@BOTH
@pytest.mark.parametrize("tie", [True, False])
def test_either_folder_loads_as_the_other_bit_for_bit(family, tie, tmp_path, caplog):
    made, ids = model(family, tie_word_embeddings=tie), tokens()
    made.save_pretrained(tmp_path / "whole")
    base, told = AutoModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert type(base) is BASES[family]
    assert not told["missing_keys"]
    with torch.no_grad():
        want, got = made(ids), base(ids)
    assert torch.equal(got.last_hidden_state, want.last_hidden_state)
    assert torch.equal(got[0], got.last_hidden_state)
    assert torch.equal(got.steps, want.steps)
    base.save_pretrained(tmp_path / "base")
    again, told = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert told["missing_keys"] == (set() if tie else {"lm.head.weight"})
    for name, tensor in base.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert (again.lm.head.weight is again.lm.embedding.weight) is tie
    assert not any(name.startswith("lm.head") for name in base.state_dict())


@BOTH
def test_a_model_has_a_base_of_the_same_weights(family):
    made, ids = model(family), tokens()
    base = made.base_model
    assert type(base) is BASES[family]
    assert made.base_model is made.get_decoder() is base
    assert base.base_model is base
    made.solve = made.solve.replace(stop=Stop(max_iter=2, rtol=0))
    assert base(ids).steps.tolist() == [2, 2]
    assert torch.equal(base(ids).last_hidden_state, made(ids).last_hidden_state)
    assert [*dict(made.named_modules())].count("lm") == 1
    assert not any("base" in name for name in made.state_dict())
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.base_model.lm is other.lm
        assert other.lm is not made.lm


@BOTH
def test_a_base_model_continues_from_a_cache(family):
    base, ids = BASES[family](converging(family).config).double(), tokens()
    base.load_state_dict({k: v for k, v in converging(family).state_dict().items() if "head" not in k})
    with torch.no_grad():
        whole = base(ids, stop=TIGHT)
        first = base(ids[:, :4], stop=TIGHT, use_cache=True)
        rest = base(ids[:, 4:], stop=TIGHT, past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.last_hidden_state, whole.last_hidden_state[:, 4:], atol=1e-8, rtol=0)


def test_a_base_model_has_no_labels_and_no_head():
    base, ids = BASES["llama"](model("llama").config), tokens()
    assert base.get_output_embeddings() is None
    with pytest.raises(TypeError, match="ImplicitLlamaModel got an unknown argument 'labels'"):
        base(ids, labels=ids)
    with pytest.raises(ValueError, match="labels must be None for a model without a head"):
        base.lm(ids, labels=ids)
    with pytest.raises(ValueError, match="logits_to_keep must be 0 for a model without a head"):
        base.lm(ids, logits_to_keep=2)
    assert base.resize_token_embeddings(30).num_embeddings == 30


@BOTH
def test_features_are_states(family):
    words, base = tokenizer(), model(family).base_model
    (got,) = pipeline("feature-extraction", model=base, tokenizer=words)("dmer", return_tensors=True)
    with torch.no_grad():
        want = base(**words("dmer", return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(got, want[0])
    assert got.shape == (4, 16)


def test_eager_attention_is_the_same_to_rounding():
    made, ids = model("llama"), tokens()
    eager = MODELS["llama"]._from_config(made.config, attn_implementation="eager").eval()
    eager.load_state_dict(made.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(eager(ids).logits, made(ids).logits, atol=1e-5, rtol=1e-5)
    assert eager.config._attn_implementation == "eager"
    eager.set_attn_implementation("sdpa")
    assert made.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_eager_attention_reaches_backward(monkeypatch, checkpointing):
    made, ids = model("llama"), tokens()
    made.set_attn_implementation("eager")
    if checkpointing:
        set_checkpointing(made, True)
    asked = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **more):
        asked.append((torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        return attend(*args, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    made(ids, labels=ids).loss.backward()
    assert set(asked) == {(True, False)}
