"""What tokenizers, collators and `Trainer` give beside tokens: taken where it says what is so, else refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from transformers import pipeline

from deqlm import Stop
from hf.tiny import FAMILIES, converging, model, tokens
from hf.words import tokenizer

BOTH = pytest.mark.parametrize("family", FAMILIES)


@BOTH
def test_token_types_are_zeros_or_refused(family):
    made, ids = model(family), tokens()
    with torch.no_grad():
        assert torch.equal(made(ids, token_type_ids=torch.zeros_like(ids)).logits, made(ids).logits)
    with pytest.raises(ValueError, match=r"token_type_ids must be zeros or None: .* got \[1\]"):
        made(ids, token_type_ids=torch.ones_like(ids))
    with pytest.raises(TypeError, match="token_type_ids must be a tensor"):
        made(ids, token_type_ids=[[0] * 7] * 2)


@BOTH
def test_packed_texts_are_refused(family):
    made, ids = model(family), tokens(1, 7)
    with pytest.raises(ValueError, match=r"start again at token 3 of row 0.* packed into one row.*packing=False"):
        made(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
    for name in ("cu_seq_lens_q", "max_length_k", "seq_idx"):
        with pytest.raises(ValueError, match=f"{name} must be None, because texts cannot be packed into one row"):
            made(ids, **{name: torch.tensor([0, 3, 7])})
    segments = torch.tensor([[1, 1, 1, 2, 2, 2, 2]])
    with pytest.raises(ValueError, match="attention_mask must be of zeros and ones"):
        made(ids, attention_mask=segments)


@BOTH
def test_positions_that_follow_from_the_mask_change_nothing(family):
    made, ids = model(family), tokens()
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        want = made(ids, attention_mask=mask).logits
        for pads in (0, 1, 99):
            positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, pads)
            assert torch.equal(made(ids, attention_mask=mask, position_ids=positions).logits, want)
        assert torch.equal(made(ids, position_ids=torch.arange(7)[None]).logits, made(ids).logits)


def test_what_is_none_is_not_given():
    made, ids = model("llama"), tokens()
    assert torch.equal(made(ids, cu_seq_lens_q=None, head_mask=None).logits, made(ids).logits)


@BOTH
def test_a_tuple_in_place_of_a_dict(family):
    made, ids = model(family), tokens()
    with torch.no_grad():
        for base in (made, made.base_model):
            named = base(ids, output_hidden_states=True)
            assert [*named] == [*named.keys()]
            plain = base(ids, output_hidden_states=True, return_dict=False)
            assert torch.equal(plain[0], named[0])
            assert len(plain) == len(named)
        made.config.return_dict = False
        assert isinstance(made(ids), tuple)


@BOTH
def test_shift_labels_stand_beside_their_logits(family):
    made, ids, targets = model(family), tokens(), tokens()
    targets[0, 2:4] = -100
    out = made(ids, labels=tokens(), shift_labels=targets)
    assert torch.allclose(out.loss, F.cross_entropy(out.logits[targets != -100], targets[targets != -100]))
    assert torch.equal(made(ids, shift_labels=targets).loss, out.loss)
    divided = made(ids, shift_labels=targets, num_items_in_batch=torch.tensor(24)).loss
    assert torch.allclose(divided, out.loss / 2)


@BOTH
def test_the_number_of_labels_is_not_read_without_labels(family):
    made, ids = model(family), tokens()
    out = made(ids, num_items_in_batch=torch.tensor(3))
    assert out.loss is None
    assert torch.equal(out.logits, made(ids).logits)


@BOTH
@pytest.mark.parametrize("implicit", [True, False])
def test_text_pipeline(family, implicit, caplog):
    words = tokenizer()
    made = converging(family) if implicit else model(family, torch.float64, implicit=False)
    made.generation_config.pad_token_id = 0
    options = {"max_new_tokens": 3, "do_sample": False, "return_full_text": False}
    got = pipeline("text-generation", model=made, tokenizer=words)("dmer", **options)[0]["generated_text"]
    want = made.generate(words("dmer", return_tensors="pt")["input_ids"], max_new_tokens=3, do_sample=False)[0, 4:]
    assert got == words.decode(want, skip_special_tokens=True)
    assert "not supported" not in caplog.text


@BOTH
@pytest.mark.parametrize("padded", [False, True])
def test_text_is_the_same_with_and_without_a_cache(family, padded):
    made, ids = converging(family), tokens(3, 8).clamp(min=1)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    options["stop"] = Stop(rtol=1e-9, max_iter=300, per="token")
    if padded:
        options["attention_mask"] = torch.ones_like(ids)
        options["attention_mask"][0, :3] = options["attention_mask"][2, :1] = 0
    made.set_deq(made.config.deq.replace(on_failure="raise"))
    cached = made.generate(ids, **options)
    for other in ({"use_cache": False}, {"mode": "simultaneous"}, {"mode": "sequential"}, {"start": "previous"}):
        assert torch.equal(made.generate(ids, **options, **other), cached)


def smoothed(logits, targets, epsilon, count):
    told = -logits.log_softmax(-1)
    told = (1 - epsilon) * told.gather(-1, targets[..., None])[..., 0] + epsilon * told.mean(-1)
    return told.sum() / count


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="Trainer needs accelerate")
@pytest.mark.parametrize("labels", ["shifted", "aligned"])
@BOTH
def test_label_smoothing_of_the_trainer(family, labels, tmp_path):
    from transformers import Trainer, TrainingArguments

    made, ids = model(family, labels=labels), tokens(2, 6)
    where = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True}
    trainer = Trainer(model=made, args=TrainingArguments(**where, label_smoothing_factor=0.2))
    targets = tokens(2, 6)
    count = targets[:, 1:].numel() if labels == "shifted" else targets.numel()
    batch = {"input_ids": ids, "labels": targets}
    for given in (None, torch.tensor(count)):
        loss = trainer.compute_loss(made, dict(batch), num_items_in_batch=given)
        logits = made(ids).logits
        pairs = (logits[:, :-1], targets[:, 1:]) if labels == "shifted" else (logits, targets)
        torch.testing.assert_close(loss, smoothed(*pairs, 0.2, count))
        own = made(ids, labels=targets).loss
        assert (loss - 0.8 * own).abs() > 1e-4
