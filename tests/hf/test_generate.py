"""Generation: transformers' own loops on our caches, against forwards without one."""

from __future__ import annotations

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import deqlm
from deqlm.hf import (
    DecodeCache,
    ImplicitLlamaConfig,
    ImplicitLlamaForCausalLM,
    ImplicitMamba2Config,
    ImplicitMamba2ForCausalLM,
)
from models.families import contract

FAMILIES = ["mamba2", "llama"]
VOCAB, NEW = 13, 3
TIGHT = deqlm.Stop(max_iter=300, rtol=1e-7, per="token")
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])


def build(family, **options):
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, **options}
    deq = {"prompt_mode": {"name": "chunked", "size": 3}}
    if sizes.get("implicit", True):
        deq["no_grad"] = {"solver": "fixed_point"}
    sizes.setdefault("deq", deq)
    if family == "mamba2":
        model = ImplicitMamba2ForCausalLM(ImplicitMamba2Config(state_size=4, head_dim=8, **sizes))
    else:
        model = ImplicitLlamaForCausalLM(ImplicitLlamaConfig(num_attention_heads=2, intermediate_size=24, **sizes))
    if model.config.implicit:
        contract(model.lm)
    return model.double().eval()


@pytest.fixture(params=FAMILIES)
def model(request):
    return build(request.param)


@pytest.fixture
def calls(model, monkeypatch):
    """What every forward of the model is given."""
    found = []
    forward = model.lm.forward

    def spy(ids=None, **given):
        found.append({"ids": ids, **given})
        return forward(ids, **given)

    monkeypatch.setattr(model.lm, "forward", spy)
    return found


def generate(model, prompt=PROMPT, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "stop": TIGHT, "return_dict_in_generate": True, **options}
    return model.generate(prompt, output_logits=True, **options)


def logits_of(out):
    return torch.stack(out.logits, dim=1)


def assert_same(got, want):
    """Ids to the bit, logits (float32 by transformers) to rounding."""
    assert torch.equal(got.sequences, want.sequences)
    scale = logits_of(want).abs().max()
    assert (logits_of(got) - logits_of(want)).abs().max() <= 1e-6 * scale


@torch.no_grad()
def log_probs(model, ids):
    """Of the token behind ``ids``, from one simultaneous solve without cache."""
    return model(ids, stop=TIGHT, mode="simultaneous", use_cache=False).logits[:, -1].float().log_softmax(-1)


def test_greedy_is_the_arg_max_of_whole_forwards(model):
    want = PROMPT
    for _ in range(NEW):
        want = torch.cat([want, log_probs(model, want).argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate(model).sequences, want)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}, {"do_sample": True, "num_beams": 2}],
    ids=["greedy", "beams", "sample", "beam-sample"],
)
def test_cached_equals_uncached(model, options):
    both = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        both.append(generate(model, use_cache=use_cache, **options))
    assert_same(*both)


def test_beams_find_the_best_of_all_sequences(model):
    longer = torch.cat([PROMPT.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], dim=1)
    scores = log_probs(model, PROMPT)[0, :, None] + log_probs(model, longer)
    best = divmod(int(scores.argmax()), VOCAB)
    out = generate(model, max_new_tokens=2, num_beams=VOCAB)
    assert tuple(out.sequences[0, -2:].tolist()) == best


def test_a_left_padded_batch_equals_single_prompts(model):
    short = PROMPT[:, :4]
    want = [generate(model), generate(model, short)]
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, :3] = 0
    for pad in (0, 7):  # what stands at padding does not matter
        padded = torch.cat([PROMPT, torch.cat([torch.full((1, 3), pad), short], dim=1)])
        got = generate(model, padded, attention_mask=mask)
        for row, alone in enumerate(want):
            assert torch.equal(got.sequences[row, 7:], alone.sequences[0, -NEW:])
            scale = logits_of(alone).abs().max()
            assert (logits_of(got)[row] - logits_of(alone)[0]).abs().max() <= 1e-6 * scale


def test_beams_of_a_padded_batch_equal_those_of_single_prompts(model):
    short = PROMPT[:, :4]
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    padded = torch.cat([PROMPT, torch.cat([torch.zeros(1, 3, dtype=torch.int64), short], dim=1)])
    got = generate(model, padded, attention_mask=mask, num_beams=3).sequences
    for row, prompt in enumerate((PROMPT, short)):
        alone = generate(model, prompt, num_beams=3).sequences[0, prompt.shape[1] :]
        assert torch.equal(got[row, 7 : 7 + len(alone)], alone)


def test_prompts_go_in_chunks_and_new_tokens_one_by_one(model, calls):
    generate(model)
    assert [call["ids"].shape[1] for call in calls] == [7, 1, 1]
    assert calls[0]["mode"] == deqlm.Chunked(3)
    assert all(call["mode"] == deqlm.Sequential() for call in calls[1:])
    assert all(call["start"] is None for call in calls)
    assert all(call["logits_to_keep"] == 1 for call in calls[:1])


def test_options_of_the_call_leave_the_configuration_alone(model, calls):
    before = model.config.to_dict()
    budget = deqlm.Stop(max_iter=2, rtol=0)
    out = generate(model, stop=budget, mode=deqlm.Chunked(4))
    assert calls[0]["mode"] == deqlm.Chunked(4)
    assert all(call["stop"] == budget for call in calls)
    assert out.steps.tolist() == [[4, 2, 2]]  # two chunks, then single tokens
    assert model.config.to_dict() == before
    assert model.generation_config.to_dict().keys().isdisjoint({"stop", "mode", "start"})


def test_steps_are_those_of_the_forwards(model):
    out = generate(model)
    with torch.no_grad():
        first = model(PROMPT, stop=TIGHT, mode=deqlm.Chunked(3), use_cache=True)
        second = model(out.sequences[:, 7:8], cache=first.cache, stop=TIGHT, mode="sequential")
    assert out.steps.shape == (1, NEW)
    assert out.steps[0, :2].tolist() == [int(first.steps), int(second.steps)]


@pytest.mark.parametrize("where", ["call", "config"])
def test_a_solve_may_start_from_the_token_before(model, calls, where):
    want = generate(model)
    del calls[:]
    if where == "config":
        model.set_deq(model.config.deq.replace(start="previous"))
    got = generate(model, **({"start": "previous"} if where == "call" else {}))
    assert_same(got, want)
    assert calls[0]["start"] is None
    assert all(call["start"].shape == (1, 1, 16) for call in calls[1:])
    with torch.no_grad():
        state = model(PROMPT, stop=TIGHT, mode=deqlm.Chunked(3)).last_hidden_state[:, -1:]
    torch.testing.assert_close(calls[1]["start"], state)
    if where == "config":
        del calls[:]
        generate(model, start="zero")
        assert all(call["start"] is None for call in calls)


def test_a_cache_goes_on_and_is_not_changed(model):
    want = generate(model)
    with torch.no_grad():
        held = model(PROMPT[:, :4], use_cache=True, stop=TIGHT).cache
    value = held.value
    rest, mask = PROMPT[:, 4:], torch.ones_like(PROMPT)
    for name in ("past_key_values", "cache"):
        assert torch.equal(generate(model, **{name: held}).sequences, want.sequences)
    got = generate(model, rest, past_key_values=held, attention_mask=mask)
    assert torch.equal(got.sequences[:, 3:], want.sequences[:, 7:])
    assert held.value is value
    again = generate(model, want.sequences, past_key_values=want.past_key_values, max_new_tokens=1)
    assert torch.equal(again.sequences, generate(model, max_new_tokens=NEW + 1).sequences)
    held.batch_repeat_interleave(2)
    many = generate(model, PROMPT.repeat(2, 1), past_key_values=held)
    assert torch.equal(many.sequences, want.sequences.repeat(2, 1))


def test_other_ways_to_give_a_prompt(model):
    want = generate(model).sequences
    assert torch.equal(generate(model, None, input_ids=PROMPT).sequences, want)
    embedded = generate(model, None, inputs_embeds=model.get_input_embeddings()(PROMPT))
    assert torch.equal(embedded.sequences, want[:, 7:])
    assert torch.equal(generate(model, prefill_chunk_size=3).sequences, want)
    one = generate(model, PROMPT[:, :1])
    assert torch.equal(one.sequences, generate(model, PROMPT[:, :1], use_cache=False).sequences)


def test_streamers_and_end_tokens(model):
    class Collect(BaseStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    streamer = Collect()
    want = generate(model, streamer=streamer).sequences[0].tolist()
    assert streamer.tokens == [*want, "end"]
    end = want[7]
    assert generate(model, eos_token_id=end, pad_token_id=0).sequences[0].tolist() == want[:8]


def test_rows_of_several_returned_sequences(model):
    torch.manual_seed(0)
    out = generate(model, do_sample=True, num_return_sequences=3, top_k=0)
    assert out.sequences.shape == (3, 7 + NEW)
    assert out.steps.shape == (3, NEW)
    assert len(set(map(tuple, out.sequences.tolist()))) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_explicit_twin_generates_too(family):
    model = build(family, implicit=False)
    ids, steps = PROMPT, NEW
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    out = model.generate(PROMPT, max_new_tokens=steps, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(out.sequences, ids)
    assert not hasattr(out, "steps")
    with pytest.raises(ValueError, match="stop must be None for an explicit model"):
        generate(model)
    with pytest.raises(ValueError, match="start must be None for an explicit model"):
        generate(model, stop=None, start="zero")


RIGHT = torch.tensor([[1] * 6 + [0]])
HOLE = torch.tensor([[1, 0, 1, 1, 1, 1, 1]])
MISTAKES = {
    "empty": ({"inputs": PROMPT[:, :0]}, ValueError, "at least one token"),
    "flat": ({"inputs": PROMPT[0]}, ValueError, r"tokens of shape \(B, L\)"),
    "ids": ({"inputs": PROMPT + VOCAB}, ValueError, "ids must be from 0 to 12"),
    "right padding": ({"attention_mask": RIGHT}, ValueError, "padding on the left only"),
    "hole": ({"attention_mask": HOLE}, ValueError, "padding on the left only"),
    "nothing but padding": ({"attention_mask": 0 * PROMPT}, ValueError, "zeros alone"),
    "chunk of 0": ({"mode": {"name": "chunked", "size": 0}}, ValueError, "size must be a whole number >= 1, got 0"),
    "mode": ({"mode": "chunky"}, KeyError, "did you mean 'chunked'"),
    "start": ({"start": "last"}, ValueError, "start must be one of"),
    "start without cache": ({"start": "previous", "use_cache": False}, ValueError, "keeps no state"),
    "foreign cache": ({"past_key_values": ()}, TypeError, "DecodeCache, got tuple"),
    "two caches": ({"past_key_values": DecodeCache(), "cache": DecodeCache()}, ValueError, "where past_key_values"),
    "cache unused": ({"past_key_values": DecodeCache(), "use_cache": False}, ValueError, "None with use_cache=False"),
    "positions": ({"position_ids": PROMPT + 1}, ValueError, "position_ids must be 0 at token 0 of row 0"),
    "assistant": ({"prompt_lookup_num_tokens": 2}, ValueError, "takes tokens back"),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, ValueError, "contrastive search is not supported"),
    "paged": ({"cache_implementation": "paged"}, ValueError, "one kind of cache"),
    "typo": ({"frobnicate": 1}, ValueError, "frobnicate"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake):
    options, kind, text = MISTAKES[mistake]
    with pytest.raises(kind, match=text):
        build("llama").generate(**{"inputs": PROMPT, "max_new_tokens": 2, **options})


def test_mistakes_with_a_cache(model):
    with torch.no_grad():
        held = model(PROMPT[:, :4], use_cache=True).cache
    with pytest.raises(ValueError, match="the batch of the cache must be that of the tokens, 2, got 1"):
        generate(model, PROMPT.repeat(2, 1), past_key_values=held)
    with pytest.raises(ValueError, match="the cache holds 4 tokens and 3 were given"):
        generate(model, PROMPT[:, :3], past_key_values=held)
    with pytest.raises(NotImplementedError, match="left-padded batch"):
        model.init_continuous_batching()


@pytest.mark.parametrize("start", ["zero", "previous"])
def test_a_token_costs_its_evaluations_and_at_most_one_more(model, monkeypatch, start):
    spent = []
    forward = model.lm.backbone.forward_chunk

    def spy(z, *args):
        spent.append(z.shape[1])
        return forward(z, *args)

    monkeypatch.setattr(model.lm.backbone, "forward_chunk", spy)
    steps = generate(model, PROMPT[:, :6], start=start).steps[0]
    chunks, tokens = spent.count(3), spent.count(1)
    assert chunks + tokens == len(spent)
    assert 0 <= chunks - int(steps[0]) <= 2
    assert 0 <= tokens - int(steps[1:].sum()) <= NEW - 1
