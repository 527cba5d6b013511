"""What models say of solves that did not converge: when, how often, and with which advice."""

from __future__ import annotations

import warnings

import pytest
import torch

import deqlm
from deqlm.models.failing import LMFailures
from deqlm.sequence.modes import Auto, Chunked, Frontier, Sequential, Simultaneous
from deqlm_solvers import ConvergenceError, ConvergenceWarning, FixedPoint, Solve, Stop
from models.families import BLOCKS, VOCAB, contract, make

SHORT = Stop(max_iter=2, rtol=1e-9)
BOTH = pytest.mark.parametrize("family", ["mamba2", "llama"])


def tokens(batch=3, length=7):
    return torch.randint(VOCAB, (batch, length))


@BOTH
def test_a_model_warns_without_grad_and_leaves_cut_short_training_alone(family):
    model = make(family, on_failure="auto")
    ids = tokens()
    with torch.no_grad(), pytest.warns(ConvergenceWarning, match="some rows ended MAX_ITER") as told:
        assert model(ids, stop=SHORT).solution.failed.all()
    assert len(told) == 1
    assert told[0].filename == __file__
    out = model(ids, labels=ids, stop=SHORT)
    assert out.solution.failed.all()
    out.loss.backward()


def test_a_budget_is_no_failure():
    model = make("mamba2", on_failure="warn")
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            model(tokens(), stop=Stop(max_iter=2, rtol=0))


@BOTH
@pytest.mark.parametrize("grad", [False, True])
def test_rows_that_are_not_finite_are_told_with_and_without_grad(family, grad):
    model = contract(make(family, on_failure="auto"))
    e = model.embedding(tokens()).detach()
    e[1] = torch.nan
    with torch.set_grad_enabled(grad), pytest.warns(ConvergenceWarning, match="NONFINITE: f returned NaN") as told:
        model(embeddings=e, stop=Stop(max_iter=300, rtol=1e-9))
    assert len(told) == 1


def test_the_policy_of_a_call_stands_over_the_models():
    ids = tokens()
    quiet, loud = make("mamba2", on_failure="ignore"), make("mamba2", on_failure="raise")
    with torch.no_grad():
        assert quiet(ids, stop=SHORT).solution.failed.all()
        assert loud(ids, stop=SHORT, on_failure="ignore").solution.failed.all()
        with pytest.raises(ConvergenceError, match=r"3 MAX_ITER \(rows 0, 1, 2\).* of this model: MAX_ITER: give"):
            loud(ids, stop=SHORT)
        with pytest.warns(ConvergenceWarning):
            quiet(ids, stop=SHORT, on_failure="warn")
    with pytest.raises(ConvergenceError):
        loud(ids, stop=SHORT)
    with pytest.raises(ValueError, match="on_failure must be one of"):
        quiet(ids, on_failure="shout")
    with pytest.raises(ValueError, match="on_failure must be one of"):
        LMFailures("shout")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_failure must be None for an explicit model"):
        make("mamba2", implicit=False)(ids, on_failure="warn")


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        (Simultaneous(), "or take mode='auto'"),
        (Chunked(3), "or take another solver: plain iteration"),
        (Sequential(), "or take another solver: plain iteration"),
        (Auto(), "or take another solver: plain iteration"),
        (Frontier(4), "or take a smaller window"),
    ],
    ids=str,
)
def test_the_advice_fits_the_mode_and_can_be_taken(mode, more):
    model = contract(make("llama", on_failure="warn"))
    with torch.no_grad(), pytest.warns(ConvergenceWarning) as told:
        model(tokens(2, 40), mode=mode, stop=Stop(max_iter=8, rtol=1e-6, per="token"))
    text = str(told[0].message)
    assert "MAX_ITER: give more evaluations, stop=Stop(max_iter=32, rtol=1e-06, per='token'), " in text
    assert more in text
    assert "compare" not in text


def test_the_advice_for_another_solver_is_not_to_take_it():
    model = make("llama", on_failure="warn", no_grad=Solve("anderson", SHORT))
    with torch.no_grad(), pytest.warns(ConvergenceWarning) as told:
        model(tokens(), mode="sequential")
    assert "or take another solver." in str(told[0].message)
    assert "Anderson()" not in str(told[0].message)


def test_the_backward_solve_of_a_model_speaks_too():
    model = contract(make("mamba2", on_failure="auto", solve=Solve(FixedPoint(), Stop(max_iter=300, rtol=1e-6))))
    model.gradient = deqlm.Implicit(solve=Solve("fixed_point", Stop(max_iter=2, rtol=1e-12)))
    ids = tokens()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = model(ids, labels=ids).loss
    with pytest.warns(ConvergenceWarning, match="backward solve"):
        loss.backward()


@pytest.mark.parametrize("family", BLOCKS)
def test_a_loss_does_not_depend_on_how_a_batch_is_cut(family):
    torch.manual_seed(0)
    model = make(family, torch.float64)
    ids = tokens(6, 9)
    mask = torch.arange(9)[None] >= torch.tensor([0, 3, 0, 1, 5, 2])[:, None]
    whole = model(ids, mask=mask, labels=ids, label_count=30)
    whole.loss.backward()
    want = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = model(ids[rows], mask=mask[rows], labels=ids[rows], label_count=30)
        assert torch.equal(part.solution.steps, whole.solution.steps[rows])
        part.loss.backward()
    for p, grad in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-10, atol=1e-12)
    assert len(set(whole.solution.steps.tolist())) > 1
