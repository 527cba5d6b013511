"""Every option of transformers' `GenerationConfig` has its effect, or is refused with the reason."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from transformers import CompileConfig, GenerationConfig, WatermarkingConfig

from deqlm import ConvergenceWarning, Stop
from deqlm.hf.refused import REFUSED, refuse_options
from hf.tiny import VOCAB, converging, model
from hf.words import LETTERS, tokenizer

PROMPT = torch.tensor([[3, 12, 4, 17, 5, 9, 20]])
NEW = 4
TIGHT = Stop(rtol=1e-9, max_iter=300, per="token")
PRIVATE = {"transformers_version", "_from_model_config"}


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(3)
    return converging("llama")


def generate(made, prompt=PROMPT, **options):
    chosen = {"max_new_tokens": NEW, "do_sample": False, "stop": TIGHT, "pad_token_id": 0, **options}
    chosen |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    return made.generate(prompt, **chosen)


@pytest.fixture(scope="module")
def greedy(made):
    return generate(made).sequences[0, 7:].tolist()


def new(out):
    return out.sequences[0, 7:].tolist()


def same(out, greedy):
    return new(out) == greedy


SAMPLED = {"do_sample": True, "top_k": 0}
WORKS = {
    "max_length": ({"max_length": 9, "max_new_tokens": None}, lambda out, _: len(new(out)) == 2),
    "max_new_tokens": ({"max_new_tokens": 2}, lambda out, g: new(out) == g[:2]),
    "min_length": ({"min_length": 10}, lambda out, g: len(new(out)) >= 3),
    "min_new_tokens": ({"min_new_tokens": 3}, lambda out, g: len(new(out)) >= 3),
    "early_stopping": ({"early_stopping": True, "num_beams": 2}, lambda out, _: len(new(out)) == NEW),
    "max_time": ({"max_time": 1e-9}, lambda out, g: new(out) == g[:1]),
    "do_sample": (SAMPLED, lambda out, _: len(new(out)) == NEW),
    "num_beams": ({"num_beams": 2, "num_return_sequences": 2}, lambda out, _: len(out.sequences) == 2),
    "use_cache": ({"use_cache": False}, lambda out, g: same(out, g) and out.past_key_values is None),
    "temperature": ({**SAMPLED, "temperature": 1e-6}, same),
    "top_k": ({**SAMPLED, "top_k": 1}, same),
    "top_p": ({**SAMPLED, "top_p": 1e-9}, same),
    "min_p": ({**SAMPLED, "min_p": 1.0}, same),
    "top_h": ({**SAMPLED, "top_h": 1e-6}, same),
    "typical_p": ({**SAMPLED, "typical_p": 1e-6}, lambda out, _: out.scores[0].isfinite().sum() == 1),
    "epsilon_cutoff": ({**SAMPLED, "epsilon_cutoff": 0.999}, same),
    "eta_cutoff": ({**SAMPLED, "eta_cutoff": 0.999}, lambda out, _: out.scores[0].isfinite().sum() < VOCAB),
    "repetition_penalty": ({"repetition_penalty": 1e6}, lambda out, _: len({*new(out)}) == NEW),
    "encoder_repetition_penalty": (
        {"encoder_repetition_penalty": 1e6},
        lambda out, _: {*new(out)} <= {*PROMPT[0].tolist()},
    ),
    "length_penalty": ({"length_penalty": 2.0, "num_beams": 2}, lambda out, _: len(new(out)) == NEW),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": 1}, lambda out, _: len({*new(out)}) == NEW),
    "encoder_no_repeat_ngram_size": (
        {"encoder_no_repeat_ngram_size": 1},
        lambda out, _: {*new(out)}.isdisjoint(PROMPT[0].tolist()),
    ),
    "bad_words_ids": ({"bad_words_ids": [[i] for i in range(20)]}, lambda out, _: min(new(out)) >= 20),
    "renormalize_logits": (
        {"renormalize_logits": True},
        lambda out, _: abs(out.scores[0].exp().sum() - 1) < 1e-5,
    ),
    "forced_bos_token_id": (
        {"prompt": PROMPT[:, :1], "forced_bos_token_id": 8},
        lambda out, _: out.sequences[0, 1] == 8,
    ),
    "forced_eos_token_id": ({"forced_eos_token_id": 8}, lambda out, _: new(out)[-1] == 8),
    "remove_invalid_values": ({"remove_invalid_values": True}, same),
    "exponential_decay_length_penalty": (
        {"exponential_decay_length_penalty": (1, 1e3), "eos_token_id": 2},
        lambda out, _: 2 in new(out),
    ),
    "suppress_tokens": ({"suppress_tokens": [*range(20)]}, lambda out, _: min(new(out)) >= 20),
    "begin_suppress_tokens": ({"begin_suppress_tokens": [*range(20)]}, lambda out, _: new(out)[0] >= 20),
    "sequence_bias": ({"sequence_bias": [[[8], 1e3]]}, lambda out, _: new(out) == [8] * NEW),
    "guidance_scale": ({"guidance_scale": 1.5}, lambda out, _: (out.scores[0] != out.logits[0]).any()),
    "watermarking_config": (
        {"watermarking_config": WatermarkingConfig(bias=30.0)},
        lambda out, _: (out.scores[0] != out.logits[0]).any(),
    ),
    "num_return_sequences": ({**SAMPLED, "num_return_sequences": 3}, lambda out, _: len(out.sequences) == 3),
    "output_hidden_states": ({"output_hidden_states": True}, lambda out, _: len(out.hidden_states[0]) == 2),
    "output_scores": ({}, lambda out, _: len(out.scores) == NEW),
    "output_logits": ({}, lambda out, _: len(out.logits) == NEW),
    "return_dict_in_generate": ({}, lambda out, _: out.steps.shape == (1, NEW)),
    "pad_token_id": ({"pad_token_id": 3}, same),
    "bos_token_id": ({"prompt": None, "bos_token_id": 4}, lambda out, _: out.sequences[0, 0] == 4),
    "eos_token_id": ({"eos_token_id": [*range(VOCAB)]}, lambda out, g: new(out) == g[:1]),
    "disable_compile": ({"disable_compile": True}, same),
    "stop_strings": (
        {"stop_strings": [*LETTERS], "tokenizer": tokenizer()},
        lambda out, g: new(out) == g[:1],
    ),
    "prefill_chunk_size": ({"prefill_chunk_size": 3}, same),
}
VALUES = {
    "cache_implementation": "static",
    "cache_config": {"nbits": 4},
    "max_cache_len": 32,
    "compile_config": CompileConfig(),
    "continuous_batching_config": object(),
    "num_assistant_tokens_schedule": "heuristic",
    "speculation_type": "dflash",
    "dola_layers": "low",
    "constraints": [1],
    "force_words_ids": [[3]],
    "decoder_start_token_id": 7,
    **dict.fromkeys(("is_assistant", "low_memory", "output_attentions", "token_healing", "use_mtp"), True),
}


def test_no_option_is_forgotten():
    assert GenerationConfig().to_dict().keys() - PRIVATE <= WORKS.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", WORKS)
def test_an_option_has_its_effect(made, greedy, name):
    if not hasattr(GenerationConfig(), name):
        pytest.skip("this release has no such option")
    torch.manual_seed(0)
    options, holds = WORKS[name]
    options = copy.copy(options)
    assert holds(generate(made, options.pop("prompt", PROMPT), **options), greedy)


def test_defaults_that_pipelines_write_are_not_refused():
    filled = GenerationConfig._get_default_generation_params()
    refuse_options(GenerationConfig(**{name: value for name, value in filled.items() if name in REFUSED}))


@pytest.mark.parametrize("name", ["assistant_model", "assistant_tokenizer"])
def test_an_assistant_is_refused(made, name):
    with pytest.raises(ValueError, match=f"{name} must be None: assisted decoding takes tokens back"):
        made.generate(PROMPT, **{name: made})


@pytest.mark.parametrize("where", ["argument", "configuration", "model"])
@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ("assistant_model", "assistant_tokenizer")])
def test_an_option_that_cannot_work_is_refused(made, monkeypatch, name, where):
    if not hasattr(GenerationConfig(), name):
        pytest.skip("this release has no such option")
    value = VALUES.get(name, 7)
    options = {name: value} if where == "argument" else {}
    given = GenerationConfig()
    if where == "configuration":
        setattr(given, name, value)
    if where == "model":
        monkeypatch.setattr(made.generation_config, name, value)
    with pytest.raises(ValueError, match=f"{name} must be None: "):
        made.generate(PROMPT, generation_config=given, max_new_tokens=2, **options)


def test_guidance_solves_as_the_call_says(made):
    away = torch.tensor([[7, 8]])
    out = generate(made, guidance_scale=1.7, negative_prompt_ids=away)
    texts, others = PROMPT, away
    with torch.no_grad():
        for token, scores in zip(out.sequences[0, 7:], out.scores, strict=True):
            to, off = (made(t, stop=TIGHT).logits[:, -1].log_softmax(-1) for t in (texts, others))
            torch.testing.assert_close(scores, 1.7 * (to - off) + off, check_dtype=False, atol=1e-4, rtol=1e-4)
            texts, others = (torch.cat([t, token[None, None]], dim=1) for t in (texts, others))
    assert out.steps.shape == (1, NEW)
    assert (out.steps > generate(made).steps).all()


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.5}, {"num_beams": 2}, {"prefill_chunk_size": 2}])
@pytest.mark.parametrize("family", ["mamba2", "llama"])
def test_failures_are_told_once(family, options):
    made = model(family)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made.generate(PROMPT, max_new_tokens=3, do_sample=False, stop=Stop(max_iter=2, rtol=1e-6), **options)
    assert sum(issubclass(w.category, ConvergenceWarning) for w in told) == 1


def test_token_types_and_stop_strings_of_a_tokenizer(made):
    words = tokenizer()
    batch = words(["dmer", "fj"], return_tensors="pt", padding=True)
    assert "token_type_ids" in batch
    out = made.generate(**batch, max_new_tokens=3, do_sample=False, stop=TIGHT, tokenizer=words, stop_strings=["wwww"])
    alone = made.generate(torch.tensor([[5, 9]]), max_new_tokens=3, do_sample=False, stop=TIGHT, pad_token_id=0)
    assert out[1, 4:].tolist() == alone[0, 2:].tolist()


def test_padding_within_a_prompt_is_a_token_of_it(made):
    prompt = torch.tensor([[3, 0, 4, 17]])
    with_mask = generate(made, prompt, attention_mask=torch.ones_like(prompt))
    assert torch.equal(generate(made, prompt).sequences, with_mask.sequences)
    left = torch.tensor([[0, 0, 3, 4]])
    assert torch.equal(generate(made, left).sequences[:, 2:], generate(made, left[:, 2:]).sequences)
    with pytest.raises(ValueError, match="padding on the left only"):
        generate(made, torch.tensor([[3, 4, 0]]))


def test_positions_of_a_prompt(made):
    ids = torch.tensor([[0, 0, 3, 12], [4, 17, 5, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    without = generate(made, ids, attention_mask=mask)
    assert torch.equal(generate(made, ids, attention_mask=mask, position_ids=positions).sequences, without.sequences)
    packed = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 1]])
    with pytest.raises(ValueError, match="start again at token 2 of row 1, as those of texts that are packed"):
        generate(made, ids, position_ids=packed, attention_mask=torch.ones_like(ids))
