"""Configurations: names, defaults, the deq section, what is refused and what comes back from JSON."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from deqlm import Chunked, FixedPoint, Phantom, Sequential, Simultaneous, Stop, Unrolled
from deqlm.hf import DeqOptions, Grad, ImplicitLlamaConfig, ImplicitMamba2Config
from deqlm.models import PRESETS, AttentionOptions, Mamba2Options
from deqlm.sequence.modes import Auto
from deqlm.training import Phases, bounded, free, warm_up
from hf.tiny import CONFIGS, FAMILIES, config, converging, tokens

PLAN = Phases((warm_up(3), bounded(5), free(max_iter=32)))


def preset_class(name: str):
    return CONFIGS["mamba2" if name.startswith("mamba2") else "llama"]


@given(st.integers(1, 300), st.integers(1, 4))
def test_mamba2_heads_are_the_widest_that_divide(hidden, expand):
    made = ImplicitMamba2Config(hidden_size=hidden, expand=expand)
    assert made.head_dim == max(p for p in range(1, 65) if hidden * expand % p == 0)
    assert made.num_heads * made.head_dim == hidden * expand


@given(st.integers(1, 300).map(lambda half: 2 * half))
def test_llama_heads_are_the_widest_that_divide_and_can_be_rotated(hidden):
    made = ImplicitLlamaConfig(hidden_size=hidden)
    assert made.head_dim == max(p for p in range(2, 65, 2) if hidden % p == 0)
    assert made.num_attention_heads * made.head_dim == hidden
    assert made.num_key_value_heads == made.num_attention_heads


def test_one_of_heads_and_width_is_enough():
    by_width, by_count = (
        ImplicitLlamaConfig(hidden_size=96, head_dim=8),
        ImplicitLlamaConfig(hidden_size=96, num_attention_heads=12),
    )
    assert by_width == by_count
    assert ImplicitMamba2Config(hidden_size=48, num_heads=4).head_dim == 24


def test_mamba2_names_lead_to_the_models_options():
    sizes = {"state_size": 6, "expand": 3, "head_dim": 12, "conv_kernel": 3, "n_groups": 2}
    made = ImplicitMamba2Config(
        hidden_size=24, num_hidden_layers=5, vocab_size=9, pad_vocab=4, hidden_dropout=0.1, **sizes
    )
    options = made.to_lm_options()
    assert options.mixer == Mamba2Options(d_state=6, expand=3, headdim=12, d_conv=3, ngroups=2)
    assert (options.d_model, options.n_layer, options.vocab_size, options.rows) == (24, 5, 9, 12)
    assert (options.dropout, options.embedding_dropout, options.d_hidden) == (0.1, 0.0, None)


def test_llama_names_lead_to_the_models_options():
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1e4, "rms_norm_eps": 1e-6}
    sizes["sliding_window"] = 9
    made = ImplicitLlamaConfig(
        hidden_size=24, embedding_dropout=0.2, tie_word_embeddings=False, labels="aligned", **sizes
    )
    options = made.to_lm_options()
    assert options.mixer == AttentionOptions(n_head=4, n_kv_head=2, rope_theta=1e4, sliding_window=9)
    assert (options.d_hidden, options.norm_eps, options.tie, options.labels) == (64, 1e-6, False, "aligned")
    assert (options.dropout, options.embedding_dropout) == (0.0, 0.2)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_sizes_and_solve(name):
    given = PRESETS[name]
    made = preset_class(name).from_preset(name)
    sizes = made.to_lm_options()
    mixer = given.mixer
    if isinstance(mixer, AttentionOptions):
        mixer = mixer.replace(n_kv_head=mixer.n_head)
    solving = {"max_iter": 24, "eval_max_iter": None, "rtol": 0.05, "phantom_steps": 4, "damping": 0.8}
    solving["best_f"] = False
    assert sizes == given.replace(mixer=mixer, embedding_dropout=given.dropout, **solving)
    if given.implicit:
        assert made.deq.grad.solve == given.solve
        assert made.deq.no_grad.solve == given.no_grad
        assert made.deq.grad.gradient == Phantom(given.phantom_steps, given.damping)
    else:
        assert made.deq == DeqOptions()


def test_a_preset_of_the_other_family_is_refused():
    with pytest.raises(ValueError, match="Mamba2Options for ImplicitMamba2Config"):
        ImplicitMamba2Config.from_preset("llama3-130m-implicit")
    with pytest.raises(KeyError, match="did you mean 'llama3-130m-implicit'"):
        ImplicitLlamaConfig.from_preset("llama3-130m-implict")


def test_defaults_are_those_of_the_paper_but_for_rows_that_end_by_themselves():
    section = DeqOptions()
    assert section.grad == Grad(
        solver=FixedPoint(), stop=Stop(max_iter=24, rtol=0.05, per="token"), gradient=Phantom(4, 0.8)
    )
    assert section.no_grad.solver == FixedPoint(damping=0.8)
    assert section.no_grad.stop == Stop(max_iter=96, rtol=0.05, per="token")
    assert (section.mode, section.prompt_mode, section.token_mode) == (Auto(), Chunked(64), Sequential())


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_trains_as_one_solve_and_finds_the_same_point_without_grad(family):
    auto = converging(family)
    assert auto.lm.mode == Auto()
    ids = torch.randint(23, (2, Auto.SHORT + 6))
    losses = []
    for mode in (None, "simultaneous"):
        auto.zero_grad()
        loss = auto(ids, labels=ids, mode=mode).loss
        loss.backward()
        losses.append([loss, *(p.grad.clone() for p in auto.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))
    with torch.no_grad():
        stop = Stop(max_iter=400, rtol=1e-11, per="token")
        got, want = (auto(ids, mode=mode, stop=stop).logits for mode in (None, "simultaneous"))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


def test_a_file_that_names_a_mode_keeps_it(tmp_path):
    """Files from before "auto" was the default name theirs."""
    config("mamba2").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())
    assert written["deq"]["mode"] == {"name": "auto"}
    written["deq"]["mode"] = {"name": "simultaneous"}
    file.write_text(json.dumps(written))
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.deq.mode == Simultaneous()
    assert again == config("mamba2", deq={"mode": "simultaneous"})


def test_keys_that_are_left_away_keep_the_defaults_of_their_section():
    section = DeqOptions(no_grad={"stop": {"rtol": 1e-3, "per": "token"}})
    assert section.no_grad.solver == DeqOptions().no_grad.solver
    assert section.no_grad.stop == Stop(rtol=1e-3, per="token")
    assert section.grad == DeqOptions().grad


@pytest.mark.parametrize("family", FAMILIES)
def test_config_json_keeps_everything(family, tmp_path):
    section = DeqOptions(
        grad={"solver": "anderson", "stop": {"rtol": 1e-3}, "gradient": "implicit"},
        phases=PLAN,
        mode="sequential",
        prompt_mode={"name": "chunked", "size": 3},
        start="previous",
        on_failure="warn",
    )
    made = config(family, deq=section, hidden_dropout=0.1, pad_token_id=0, eos_token_id=[1, 2])
    made.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["deq"] == section.to_dict()
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is CONFIGS[family]
    assert again == made
    assert again.deq == section
    assert again.deq.phases.at(4).gradient == Phantom(1, 0.8)
    assert copy.deepcopy(made) == made


def test_configurations_differ_where_any_key_does():
    assert config("llama") == config("llama")
    assert config("llama") != config("llama", hidden_dropout=0.1)
    assert config("llama") != config("llama", deq={"mode": "sequential"})
    assert config("llama") != config("mamba2")


def test_keys_of_transformers_pass():
    keys = {"architectures": ["X"], "id2label": {0: "a", 1: "b"}, "name_or_path": "here", "dtype": "bfloat16"}
    made = config("llama", **keys, output_attentions=False, return_dict=True, transformers_version="5")
    assert made.id2label == {0: "a", 1: "b"}
    assert str(made.dtype) == "torch.bfloat16"


def test_the_deq_section_may_be_replaced_and_is_checked_then():
    made = config("mamba2")
    made.deq = {"mode": {"name": "chunked", "size": 2}}
    assert made.deq == DeqOptions(mode=Chunked(2))
    with pytest.raises(TypeError, match="did you mean 'mode'"):
        made.deq = {"mod": "sequential"}


def test_values_that_change_later_are_checked_by_the_model():
    made = config("llama")
    made.hidden_size = 20
    made.head_dim = 7
    with pytest.raises(ValueError, match=r"num_attention_heads \* head_dim must be hidden_size, 20"):
        made.to_lm_options()


def test_an_explicit_twin_may_have_modes_but_no_solve():
    assert config("llama", implicit=False, deq={"mode": "sequential"}).deq.mode == Sequential()
    for section in ({"no_grad": {"stop": {"rtol": 0.1}}}, {"phases": PLAN}, {"on_failure": "warn"}):
        with pytest.raises(ValueError, match="left away with implicit=False: nothing is solved"):
            config("llama", implicit=False, deq=section)


def test_unrolling_knows_one_solve_only():
    section = {"grad": {"stop": {"max_iter": 4, "rtol": 0}, "gradient": "unrolled"}}
    assert DeqOptions(**section).grad.gradient == Unrolled()
    with pytest.raises(ValueError, match="mode must be 'auto' or 'simultaneous' with gradient 'unrolled'"):
        DeqOptions(**section, mode="sequential")


def test_a_gradient_with_the_same_value_makes_one_solve_of_both(tmp_path):
    grad = {"stop": {"max_iter": 2, "rtol": 0}, "gradient": {"name": "phantom", "steps": 2, "same_value": True}}
    made = converging("llama", deq={"grad": grad})
    assert made.no_grad == made.solve
    ids = tokens()
    with torch.no_grad():
        without = made(ids).logits
    torch.testing.assert_close(made(ids).logits.detach(), without, rtol=1e-12, atol=1e-13)
    made.save_pretrained(tmp_path)
    assert type(made).from_pretrained(tmp_path).config.deq == made.config.deq
    assert not made.config.deq.for_evaluation().grad.gradient.same_value
    with pytest.raises(ValueError, match="no_grad must be that of grad, or left away"):
        config("llama", deq={"grad": grad, "no_grad": {"solver": "anderson"}})
