"""The section of evaluation: scores depend on nothing behind a token and not on the batch, converged or not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deqlm import Anderson, Chunked, Simultaneous, Solve, Status, Stop
from deqlm.hf import DeqOptions, evaluation
from deqlm.training import bounded
from hf.tiny import FAMILIES, VOCAB, config, model, tokens

BOTH = pytest.mark.parametrize("family", FAMILIES)
LENGTH = 19


def failing(family, **changes):
    """Return an untrained model in float32, wide enough that some of its solves do not converge."""
    return model(family, hidden_size=32, **changes)


def scores(made, ids):
    with torch.no_grad():
        return made(ids, on_failure="ignore").logits[:, :LENGTH].log_softmax(-1)


def variants(text):
    """Return the text in batches, with other texts and other endings of other lengths."""
    for behind in (1, 14, 40):
        batch = torch.randint(VOCAB, (3, LENGTH + behind))
        batch[:2, :LENGTH] = text
        batch[1, LENGTH:] = 0
        yield batch


@BOTH
def test_scores_depend_on_nothing_behind_them_nor_beside_them(family):
    made, text = failing(family), tokens(1, LENGTH)
    worst = {}
    for name in ("default", "evaluation"):
        if name == "evaluation":
            made.set_deq(name)
        alone = scores(made, text)
        worst[name] = max((scores(made, batch)[:2] - alone).abs().max().item() for batch in variants(text))
    assert worst["evaluation"] < 1e-5
    assert worst["default"] > 1e-4


@BOTH
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), behind=st.integers(1, 50))
def test_it_holds_for_any_weights(family, seed, behind):
    torch.manual_seed(seed)
    made = model(family, deq="evaluation")
    text = tokens(1, LENGTH)
    longer = torch.cat([text, tokens(1, behind)], dim=1).expand(2, -1)
    torch.testing.assert_close(scores(made, longer), scores(made, text).expand(2, -1, -1), rtol=0, atol=1e-5)


@BOTH
def test_padding_on_either_side_changes_no_text(family):
    made, text = failing(family, deq="evaluation"), tokens(1, 9)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    alone = made.generate(text, **options)[:, 9:]
    batch = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), text], 1), tokens(2, 14)])
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    assert torch.equal(made.generate(batch, attention_mask=mask, **options)[:1, 14:], alone)


def test_every_row_is_a_budget_and_says_its_residual():
    made = model("mamba2", deq="evaluation")
    with torch.no_grad():
        out = made(tokens())
    assert out.status.tolist() == [Status.BUDGET, Status.BUDGET]
    assert (out.residual > 0).all()


def test_the_rest_of_a_section_stays():
    section = DeqOptions(
        grad={"stop": {"max_iter": 3, "rtol": 0}},
        no_grad={"solver": {"name": "fixed_point", "damping": 0.5}},
        failed_grad="keep",
        start="previous",
    )
    made = section.for_evaluation()
    assert made.grad == section.grad
    assert made.failed_grad == "keep"
    assert made.start == "zero"
    assert made.no_grad.solver.damping == 0.5
    assert DeqOptions.from_dict(made.to_dict()) == made == made.for_evaluation()
    unrolled = DeqOptions(grad={"gradient": "unrolled"}, mode=Simultaneous())
    assert unrolled.for_evaluation().grad == DeqOptions().grad


def test_a_name_is_read_wherever_a_section_is(tmp_path):
    made = model("llama", deq={"grad": {"stop": {"max_iter": 3, "rtol": 0}}})
    made.save_pretrained(tmp_path)
    loaded = type(made).from_pretrained(tmp_path, deq="evaluation")
    assert loaded.config.deq == made.config.deq.for_evaluation()
    assert loaded.lm.mode == Chunked(32)
    assert config("llama", deq="evaluation").deq == DeqOptions().for_evaluation()
    with pytest.raises(ValueError, match=r"deq must be one of \('evaluation',\)"):
        made.set_deq("evalation")


def test_an_explicit_twin_is_evaluated_as_it_is():
    made = model("llama", implicit=False)
    before = made.config.deq
    made.set_deq("evaluation")
    assert made.config.deq == before
    assert config("llama", implicit=False, deq="evaluation").deq == before


def test_for_a_while_and_then_as_before():
    made = model("llama")
    holder = nn.ModuleDict({"inner": made})
    bounded(4).apply(made)
    made.no_grad = Solve(Anderson(), Stop(max_iter=7, per="token"))
    before = (made.config.deq, made.solve, made.gradient, made.no_grad, made.lm.mode)
    with evaluation(holder):
        assert made.no_grad.stop.is_budget
    assert (made.config.deq, made.solve, made.gradient, made.no_grad, made.lm.mode) == before
    with pytest.raises(KeyError), evaluation(holder):
        made.lm({}["tokens"])
    assert made.no_grad == before[3]
    with pytest.raises(ValueError, match=r"model must be one of deqlm\.hf"), evaluation(nn.Linear(2, 2)):
        pass
