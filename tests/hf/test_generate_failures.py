"""Generation says which of its solves did not converge, once per call, and solves by other solvers and elsewhere."""

from __future__ import annotations

import inspect

import pytest
import torch

import deqlm
from hf.test_generate import FAMILIES, NEW, PROMPT, build, generate


@pytest.fixture(params=FAMILIES)
def model(request):
    return build(request.param)


WILD = deqlm.Stop(max_iter=3, rtol=1e-9, per="token")
"""No solve passes."""


@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"num_beams": 2}, {"prefill_chunk_size": 3}, {"start": "previous"}], ids=str
)
def test_one_warning_tells_how_many_solves_did_not_converge(model, options):
    with pytest.warns(deqlm.ConvergenceWarning) as told:
        out = generate(model, PROMPT.repeat(2, 1), stop=WILD, **options)
    (each,) = told
    assert each.filename == inspect.getfile(generate)
    rows = len(out.status)
    text = str(each.message)
    assert f"the solves of {rows} of {rows} prompts and {2 * rows} of {2 * rows} tokens that were fed back, " in text
    assert f"in {rows} of {rows} rows, did not converge ({NEW * rows} MAX_ITER)" in text
    assert "stop=Stop(max_iter=12, rtol=1e-09, per='token')" in text
    assert "deqlm.diagnose(model, ids)" in text
    assert out.status.dtype == torch.int8
    assert out.status.shape == out.steps.shape == (rows, NEW)
    assert (out.status == deqlm.Status.MAX_ITER).all()


def test_tokens_without_a_dict_are_told_too(model):
    with pytest.warns(deqlm.ConvergenceWarning, match="1 of 1 prompts and 2 of 2 tokens"):
        tokens = model.generate(PROMPT, max_new_tokens=NEW, do_sample=False, stop=WILD)
    assert tokens.shape == (1, 7 + NEW)


def test_solves_that_converge_say_nothing_and_have_a_status(model):
    assert (generate(model).status == deqlm.Status.CONVERGED).all()
    out = generate(model, stop=deqlm.Stop(max_iter=2, rtol=0))
    assert (out.status == deqlm.Status.BUDGET).all()


def test_the_chunks_of_a_prompt_are_one_column(model):
    whole = generate(model, mode=deqlm.Chunked(3))
    parts = generate(model, mode=deqlm.Chunked(3), prefill_chunk_size=3)
    assert torch.equal(parts.steps, whole.steps)


def test_a_prompt_that_fails_in_an_early_chunk_is_told(model):
    """Only the last part of a prompt in parts is seen by transformers."""
    hard = model.lm.embedding.weight.data[PROMPT[0, 0]]
    hard.fill_(torch.nan)
    with pytest.warns(deqlm.ConvergenceWarning, match="1 of 1 prompts") as told:
        out = generate(model, prefill_chunk_size=3, max_new_tokens=1)
    assert "NONFINITE" in str(told[0].message)
    assert out.status[0, 0] == deqlm.Status.NONFINITE


def test_tokens_behind_the_end_of_a_row_are_not_told(model):
    """Rows that have ended are fed padding until the last one ends."""
    prompts = torch.cat([PROMPT, PROMPT.flip(1)])
    new = model.generate(prompts, max_new_tokens=NEW, do_sample=False, stop=WILD, on_failure="ignore")[:, 7:]
    end = int(new[0, 0])
    fed = sum(NEW - 1 if end not in row else row.index(end) for row in new.tolist())
    with pytest.warns(deqlm.ConvergenceWarning) as told:
        generate(model, prompts, stop=WILD, eos_token_id=end, pad_token_id=0)
    want = f" and {fed} of {fed} tokens that were fed back, " if fed else "2 of 2 prompts, in 2"
    assert want in str(told[0].message)


def test_the_policy_of_the_call_and_of_the_configuration(model):
    generate(model, stop=WILD, on_failure="ignore")
    with pytest.raises(deqlm.ConvergenceError, match="MAX_ITER"):
        generate(model, stop=WILD, on_failure="raise")
    with pytest.raises(ValueError, match="on_failure must be one of"):
        generate(model, on_failure="shout")
    model.set_deq(model.config.deq.replace(on_failure="ignore"))
    generate(model, stop=WILD)
    with pytest.warns(deqlm.ConvergenceWarning):
        generate(model, stop=WILD, on_failure="warn")
    with pytest.raises(ValueError, match="on_failure must be None for an explicit model"):
        build("llama", implicit=False).generate(PROMPT, on_failure="warn")


def test_beams_in_a_window_that_do_not_converge_are_told():
    """Their texts with and without a cache differ, because neither is that of the fixed points."""
    model = build("llama", sliding_window=2)
    for use_cache in (True, False):
        with pytest.warns(deqlm.ConvergenceWarning, match="another one without a cache"):
            generate(model, num_beams=3, use_cache=use_cache, stop=WILD)


@pytest.mark.parametrize("solver", ["newton", "newton_krylov"])
def test_newton_generates(model, solver):
    want = generate(model).sequences
    deep = deqlm.Stop(max_iter=5000, rtol=1e-7, per="token")
    model.set_deq(model.config.deq.replace(no_grad={"solver": solver, "stop": deep}))
    out = generate(model, stop=None)
    assert torch.equal(out.sequences, want)
    assert (out.status == deqlm.Status.CONVERGED).all()


def test_beams_on_another_device_than_the_default(model):
    """Transformers makes some tensors of its beam search on torch's default device."""
    model.set_deq(model.config.deq.replace(no_grad={"solver": {"name": "fixed_point", "impl": "torch"}}))
    want = generate(model, num_beams=3).sequences
    with torch.device("meta"):
        assert torch.equal(generate(model, num_beams=3).sequences, want)
