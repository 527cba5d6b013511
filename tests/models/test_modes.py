"""Every mode commits one undamped evaluation at the point it returns, and all modes find the same fixed point."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import deqlm
from deqlm.layers import Block, Mamba2
from deqlm.models import Backbone, ImplicitLM
from deqlm.sequence.modes import Chunked, Sequential, Simultaneous
from deqlm_solvers import Solve, Status, Stop
from models.families import BLOCKS, VOCAB, WIDTH, contract, make

LENGTH = 17
MODES = [Simultaneous(), Sequential(), Chunked(3), Chunked(16), Chunked(LENGTH)]
ONE_THING = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(params=BLOCKS)
def model(request):
    return contract(make(request.param)).eval()


def hard_to_easy(model, batch, length=LENGTH):
    """Return embeddings whose rows need different numbers of evaluations."""
    e = model.embedding(torch.randint(VOCAB, (batch, length))).detach()
    # the norm's eps keeps small embeddings small: less is injected, and the state matters more
    return e * torch.logspace(-2.7, 0, batch, dtype=e.dtype)[:, None, None]


def left_padded(rows, length):
    """Return sequences (L_b, D) as one tensor (B, length, D) with NaN before each, and the mask."""
    out = torch.full((len(rows), length, rows[0].shape[1]), torch.nan, dtype=rows[0].dtype)
    mask = torch.zeros(out.shape[:2], dtype=torch.bool)
    for b, row in enumerate(rows):
        out[b, length - len(row) :] = row
        mask[b, length - len(row) :] = True
    return out, mask


def ragged(model):
    """Return three sequences of different lengths."""
    e = hard_to_easy(model, 3, length=9)
    return [e[0], e[1, :4], e[2, :1]]


def tensors(cache):
    return [t for layer in cache.layers for t in layer if t is not None]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("stop", [Stop(rtol=0.05), Stop(max_iter=2, rtol=1e-9), Stop(max_iter=3, rtol=0)])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_one_evaluation_at_the_joined_points_reproduces_everything(model, mode, stop, batch):
    e = hard_to_easy(model, batch)
    with torch.no_grad():
        out = model(embeddings=e, mode=mode, stop=stop, use_cache=True)
        context = model.backbone.open(e)
        z = out.solution.z
        y, layers = model.backbone.forward_chunk(
            z, model.backbone.project(e, context), model.backbone.empty_cache(batch), context
        )
        torch.testing.assert_close(out.state, y, **ONE_THING)
        for ours, theirs in zip(tensors(out.cache), [t for c in layers for t in c if t is not None], strict=True):
            torch.testing.assert_close(ours, theirs, **ONE_THING)
        if not stop.is_budget:
            residual = (y - z).norm(dim=2).amax(1)
            torch.testing.assert_close(out.solution.residual, residual, rtol=1e-9, atol=1e-12)
            passes = ((y - z).norm(dim=2) <= stop.rtol * y.norm(dim=2) * (1 + 1e-9)).all(1)
            assert torch.equal(out.solution.converged, passes)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_modes_agree_at_the_fixed_point(model, mode):
    e = hard_to_easy(model, 2)
    with torch.no_grad():
        exact = model(embeddings=e, stop=Stop(max_iter=500, rtol=1e-13))
        out = model(embeddings=e, mode=mode, stop=Stop(max_iter=500, rtol=1e-12))
        assert out.solution.converged.all()
        assert (out.logits - exact.logits).abs().max() <= 1e-9 * exact.logits.abs().max()


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_modes_agree_in_float32_as_the_condition_allows(model, mode):
    e = hard_to_easy(model, 2, length=7)
    u = model.backbone.project(e[:1])
    with torch.no_grad():
        exact = model(embeddings=e, stop=Stop(max_iter=500, rtol=1e-13))
    jacobian = torch.autograd.functional.jacobian(lambda z: model.backbone(z, u), exact.solution.z[:1])
    n = e[0].numel()
    kappa = torch.linalg.svdvals(torch.eye(n, dtype=e.dtype) - jacobian.reshape(n, n)).min().reciprocal().item()
    assert kappa <= 10
    with torch.no_grad():
        out = model.float()(embeddings=e.float(), mode=mode, stop=Stop(max_iter=500, rtol=1e-6))
    assert out.solution.converged.all()
    largest = exact.logits.abs().max()
    assert (out.logits - exact.logits).abs().max() <= max(1e-5, 2 * kappa * 1e-6) * largest


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_rows_stop_on_their_own(model, mode):
    e = hard_to_easy(model, 4, length=7)
    stop = Stop(rtol=1e-6)
    with torch.no_grad():
        together = model(embeddings=e, mode=mode, stop=stop)
        alone = [model(embeddings=row[None], mode=mode, stop=stop) for row in e]
    assert torch.equal(together.solution.steps, torch.cat([a.solution.steps for a in alone]))
    assert len(together.solution.steps.unique()) > 1
    torch.testing.assert_close(together.logits, torch.cat([a.logits for a in alone]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_tokens_tell_when_they_settled(model, mode):
    e = hard_to_easy(model, 2)
    with torch.no_grad():
        sol = model(embeddings=e, mode=mode, stop=Stop(rtol=1e-6)).solution
    assert sol.token_steps.shape == (2, LENGTH)
    assert (sol.token_steps > 0).all()
    most = [sol.token_steps[:, first:end].amax(1) for first, end in mode.cuts(LENGTH)]
    assert torch.equal(torch.stack(most).sum(0), sol.steps)


@pytest.mark.parametrize(("mode", "length"), [*((mode, 15) for mode in MODES), (MODES[0], 9)], ids=str)
def test_padding_is_inert(model, mode, length):
    rows, stop = ragged(model), Stop(max_iter=500, rtol=1e-12)
    more = hard_to_easy(model, 3, length=2)
    padded, mask = left_padded(rows, length)
    with torch.no_grad():
        got = model(embeddings=padded, mask=mask, mode=mode, stop=stop, use_cache=True)
        follows = model(embeddings=more, mode=mode, stop=stop, cache=got.cache)
        for b, row in enumerate(rows):
            alone = model(embeddings=torch.cat([row, more[b]])[None], stop=stop)
            torch.testing.assert_close(got.logits[b, mask[b]], alone.logits[0, : len(row)], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(follows.logits[b], alone.logits[0, len(row) :], rtol=1e-9, atol=1e-9)
    assert got.solution.converged.all()
    assert not got.solution.z[~mask].any()
    assert not got.solution.token_steps[~mask].any()


def test_padding_on_the_right_is_inert_for_the_tokens_of_the_call(model):
    e = hard_to_easy(model, 2, length=9)
    mask = torch.arange(9)[None] < torch.tensor([9, 5])[:, None]
    with torch.no_grad():
        want = model(embeddings=e, stop=Stop(max_iter=500, rtol=1e-12))
        got = model(
            embeddings=e.masked_fill(~mask[..., None], torch.nan), mask=mask, stop=Stop(max_iter=500, rtol=1e-12)
        )
    torch.testing.assert_close(got.logits[mask], want.logits[mask], rtol=1e-9, atol=1e-9)


def test_padding_changes_no_step_of_sequential_mode(model):
    rows = ragged(model)
    padded, mask = left_padded(rows, 12)
    with torch.no_grad():
        got = model(embeddings=padded, mask=mask, mode=Sequential(), stop=Stop(rtol=0.05))
        for b, row in enumerate(rows):
            alone = model(embeddings=row[None], mode=Sequential(), stop=Stop(rtol=0.05))
            torch.testing.assert_close(got.logits[b, mask[b]], alone.logits[0], rtol=1e-9, atol=1e-9)
            assert torch.equal(got.solution.token_steps[b, mask[b]], alone.solution.token_steps[0])


def test_padding_reaches_no_gradient(model):
    rows = ragged(model)
    padded, mask = left_padded(rows, 12)
    stop = Stop(max_iter=500, rtol=1e-12)
    model(embeddings=padded, mask=mask, stop=stop).logits[mask].square().sum().backward()
    got = [p.grad.clone() for p in model.backbone.parameters()]
    model.zero_grad()
    for row in rows:
        model(embeddings=row[None], stop=stop).logits.square().sum().backward()
    for behind_nan, parameter in zip(got, model.backbone.parameters(), strict=True):
        torch.testing.assert_close(behind_nan, parameter.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_commit_reuses_the_last_evaluation(model, mode):
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        one = model(embeddings=hard_to_easy(model, 1), mode=mode, stop=Stop(rtol=1e-4)).solution
    assert one.cost.evaluations == len(calls) == int(one.steps)


@pytest.mark.parametrize("mode", [Simultaneous(), Chunked(40)], ids=str)
@pytest.mark.parametrize("family", BLOCKS)
def test_rows_leave_the_batch_and_change_nothing(family, mode):
    model = contract(make(family), reach=0.5 if family == "mamba2" else 0.1)
    e = hard_to_easy(model, 9, length=72)
    mask = torch.ones(e.shape[:2], dtype=torch.bool)
    # rows that are easy, because they are short
    mask[1:, :68] = False
    stop = Stop(max_iter=500, rtol=1e-12)
    with torch.no_grad():
        stay = model(embeddings=e, mask=mask, mode=mode, stop=stop.replace(compact=False))
        leave = model(embeddings=e, mask=mask, mode=mode, stop=stop)
    assert stay.solution.converged.all()
    torch.testing.assert_close(leave.logits, stay.logits, rtol=1e-9, atol=1e-9)
    assert leave.solution.cost.row_evaluations < 0.8 * stay.solution.cost.row_evaluations


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_row_that_fails_leaves_the_others_alone(model, mode):
    e = hard_to_easy(model, 3, length=7)
    with torch.no_grad():
        want = model(embeddings=e, mode=mode, stop=Stop(max_iter=40, rtol=1e-4))
        e[1] = torch.nan
        got = model(embeddings=e, mode=mode, stop=Stop(max_iter=40, rtol=1e-4))
    assert got.solution.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert torch.equal(got.logits[[0, 2]], want.logits[[0, 2]])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_training_takes_phantom_steps_of_the_whole_sequence(model, mode):
    e = hard_to_easy(model, 2)
    model.solve = Solve(deqlm.FixedPoint(), Stop(max_iter=3, rtol=1e-9, per="token"))
    model.gradient = deqlm.Phantom(3, 0.8)
    out = model(embeddings=e, mode=mode)
    out.state.square().sum().backward()
    got = [p.grad.clone() for p in model.backbone.parameters()]

    model.zero_grad()
    with torch.no_grad():
        model.no_grad = model.solve
        z = model(embeddings=e, mode=mode).solution.z
    context = model.backbone.open(e)
    u = model.backbone.project(e, context)
    for _ in range(3):
        z = torch.lerp(z, model.backbone(z, u, context), 0.8)
    z.square().sum().backward()
    torch.testing.assert_close(out.state, z, **ONE_THING)
    for ours, theirs in zip(got, model.backbone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", [Sequential(), Chunked(3)], ids=str)
@pytest.mark.parametrize("gradient", [deqlm.Implicit(), deqlm.OneStep()], ids=str)
def test_other_gradients_belong_to_the_joined_point_too(model, mode, gradient):
    e = hard_to_easy(model, 2, length=6)
    model.solve, model.gradient = Solve(deqlm.FixedPoint(), Stop(max_iter=300, rtol=1e-11)), gradient
    grads = []
    for how in (Simultaneous(), mode):
        model.zero_grad()
        model(embeddings=e, mode=how).state.square().sum().backward()
        grads.append([p.grad.clone() for p in model.backbone.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item() + 1e-9)


def test_unrolling_is_refused_where_tokens_are_cut(model):
    model.solve, model.gradient = Solve(deqlm.FixedPoint(), Stop(max_iter=4, rtol=0)), deqlm.Unrolled()
    ids = torch.randint(VOCAB, (2, 5))
    assert model(ids, labels=ids).loss.requires_grad
    with pytest.raises(ValueError, match="mode=Simultaneous"):
        model(ids, mode=Chunked(2))
    model.no_grad = Solve(deqlm.Anderson(), Stop(rtol=1e-2))
    with torch.no_grad():
        assert model(ids, mode=Chunked(2)).solution.converged.all()


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_dropout_of_the_layers_is_one_mask_per_call(mode):
    block = Block(Mamba2(WIDTH, d_state=4, headdim=8, dropout=0.3))
    model = contract(ImplicitLM(Backbone([block]), vocab_size=VOCAB).double()).train()
    e = hard_to_easy(model, 2)
    with torch.no_grad():
        torch.manual_seed(1)
        want = model(embeddings=e, stop=Stop(rtol=1e-11, max_iter=300))
        torch.manual_seed(1)
        got = model(embeddings=e, mode=mode, stop=Stop(rtol=1e-11, max_iter=300))
        other = model(embeddings=e, mode=mode, stop=Stop(rtol=1e-11, max_iter=300))
    assert got.solution.converged.all()
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-8, atol=1e-8)
    assert (got.logits - other.logits).abs().max() > 1e-2


class Noisy(nn.Module):
    """An MLP that draws new noise in every evaluation."""

    def forward(self, z, context=None):
        return nn.functional.dropout(z, 0.5)


def test_noise_that_is_not_shared_is_refused_where_tokens_are_cut():
    backbone = Backbone([Block(Mamba2(WIDTH, d_state=4, headdim=8), mlp=Noisy())])
    model = contract(ImplicitLM(backbone, vocab_size=VOCAB).double())
    ids = torch.randint(VOCAB, (2, 5))
    assert model(ids).logits.isfinite().all()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="mode must be Simultaneous"):
            model(ids, mode=Sequential())


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_call_leaves_the_model_as_it_was(model, mode):
    before = copy.deepcopy(model.state_dict())
    ids = torch.randint(VOCAB, (2, 5))
    first, second = (model(ids, mode=mode).logits for _ in range(2))
    assert torch.equal(first, second)
    with torch.inference_mode():
        under = model(ids, mode=mode, use_cache=True)
        model(ids[:, :1], mode=mode, cache=under.cache)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
