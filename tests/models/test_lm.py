"""The language model around the backbone: embeddings, head, loss, caches, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import deqlm
from deqlm import Phantom
from deqlm.layers import Block, Mamba2
from deqlm.models import Backbone, ImplicitLM
from deqlm.sequence.modes import Chunked, Sequential, Simultaneous
from deqlm_solvers import ConvergenceWarning, FixedPoint, Solve, Stop
from models.families import BLOCKS, VOCAB, WIDTH, contract, make

EXACT = Stop(max_iter=500, rtol=1e-12)


@pytest.fixture(params=BLOCKS)
def model(request):
    return contract(make(request.param))


@pytest.fixture(params=BLOCKS)
def explicit(request):
    return make(request.param, implicit=False)


def tokens(batch=3, length=7):
    return torch.randint(VOCAB, (batch, length))


def test_the_explicit_twin_is_one_pass(explicit):
    ids = tokens()
    out = explicit(ids)
    e = explicit.embedding(ids)
    assert torch.equal(out.logits, explicit.head(explicit.backbone(e, None, explicit.backbone.open(e))))
    assert out.solution is None


@pytest.mark.parametrize("mode", [Sequential(), Chunked(3)], ids=str)
def test_the_explicit_twin_has_the_modes_and_caches(explicit, mode):
    ids = tokens()
    want = explicit(ids).logits
    first = explicit(ids[:, :4], mode=mode, use_cache=True)
    rest = explicit(ids[:, 4:], mode=mode, cache=first.cache)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), want, rtol=1e-11, atol=1e-11)


def test_the_explicit_twin_ignores_padding(explicit):
    ids = tokens(1)
    mask = torch.arange(10)[None] >= 3
    padded = torch.cat([torch.full((1, 3), 5), ids], dim=1)
    torch.testing.assert_close(explicit(padded, mask=mask).logits[:, 3:], explicit(ids).logits, rtol=1e-11, atol=1e-11)


def test_head_and_embedding_are_tied_or_not():
    tied, free = make("llama"), make("llama", tie=False, head_bias=True)
    assert tied.head.weight is tied.embedding.weight
    assert copy.deepcopy(tied).head.weight is not tied.head.weight
    again = copy.deepcopy(tied)
    assert again.head.weight is again.embedding.weight
    assert free.head.weight is not free.embedding.weight
    assert free.head.bias is not None
    assert abs(tied.embedding.weight.std().item() - 0.02) < 0.004


def test_a_call_goes_on_from_a_cache(model):
    ids = tokens(2, 9)
    with torch.no_grad():
        want = model(ids, stop=EXACT)
        prompt = model(ids[:, :5], mode=Chunked(2), stop=EXACT, use_cache=True)
        assert prompt.cache.length == 5
        cache, logits = prompt.cache, [prompt.logits]
        for t in range(5, 9):
            out = model(ids[:, t : t + 1], cache=cache, stop=EXACT, use_cache=True)
            cache = out.cache
            logits.append(out.logits)
        again = model(ids[:, 5:], cache=prompt.cache, stop=EXACT)
    torch.testing.assert_close(torch.cat(logits, dim=1), want.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again.logits, want.logits[:, 5:], rtol=1e-9, atol=1e-9)


def test_rows_of_a_cache_can_be_reordered(model):
    ids = tokens(3, 6)
    rows = torch.tensor([2, 0, 2])
    mask = torch.arange(5)[None] >= torch.tensor([0, 2, 1])[:, None]
    with torch.no_grad():
        out = model(ids[:, :5], mask=mask, stop=EXACT, use_cache=True)
        want = model(ids[:, 5:], cache=out.cache, stop=EXACT).logits[rows]
        got = model(ids[rows, 5:], cache=out.cache.rows(rows), stop=EXACT).logits
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_training_can_go_on_from_a_cache(model):
    ids = tokens(2, 8)
    model.solve, model.gradient = Solve(FixedPoint(), EXACT), deqlm.Implicit()
    with torch.no_grad():
        cache = model(ids[:, :4], stop=EXACT, use_cache=True).cache
        want = model(ids, stop=EXACT).logits[:, 4:]
    out = model(ids[:, 4:], cache=cache)
    torch.testing.assert_close(out.logits, want, rtol=1e-8, atol=1e-8)
    out.logits.sum().backward()
    assert model.backbone.norm_f.weight.grad.any()


def test_the_loss_is_shifted_or_aligned(model):
    ids, labels = tokens(), tokens()
    labels[0, 2] = -100
    logits = model(ids).logits
    want = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(model(ids, labels=labels).loss, want)
    model.labels = "aligned"
    want = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(model(ids, labels=labels).loss, want)


@pytest.mark.parametrize("labels", ["shifted", "aligned"])
def test_the_loss_does_not_count_padding(model, labels):
    model.labels = labels
    ids = tokens(1, 5)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), ids], dim=1)
    mask = torch.arange(8)[None] >= 3
    with torch.no_grad():
        want = model(ids, labels=ids, stop=EXACT).loss
        got = model(padded, mask=mask, labels=padded, stop=EXACT).loss
    torch.testing.assert_close(got, want)


def test_grad_mode_chooses_the_solve(model):
    ids = tokens()
    model.solve = Solve(FixedPoint(), Stop(max_iter=4, rtol=0))
    model.no_grad = Solve(FixedPoint(damping=0.5), Stop(max_iter=7, rtol=0))
    model.gradient = deqlm.Phantom(1, 0.8)
    assert model(ids).solution.cost.evaluations == 4 + 1
    for train in (True, False):
        with torch.no_grad():
            assert model.train(train)(ids).solution.cost.evaluations == 7 + 1


def test_without_grad_the_state_is_an_undamped_evaluation(model):
    ids = tokens()
    with torch.no_grad():
        out = model(ids, stop=Stop(max_iter=3, rtol=0))
        e = model.embedding(ids)
        u, z = model.backbone.project(e), torch.zeros_like(e)
        for _ in range(3):
            z = 0.2 * z + 0.8 * model.backbone(z, u)
        torch.testing.assert_close(out.solution.z, z, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(out.state, model.backbone(z, u), rtol=1e-12, atol=1e-12)


def test_failures_are_left_to_the_reader_or_reported():
    ids = tokens()
    quiet, loud = make("mamba2"), make("mamba2", on_failure="warn")
    with torch.no_grad():
        assert quiet(ids, stop=Stop(max_iter=2, rtol=1e-9)).solution.failed.all()
        with pytest.warns(ConvergenceWarning):
            loud(ids, stop=Stop(max_iter=2, rtol=1e-9))


def test_rows_that_fail_add_nothing_to_gradients(model):
    e = model.embedding(tokens(2, 5)).detach()
    mask = torch.arange(5)[None] >= torch.tensor([0, 1])[:, None]
    grads = []
    for fill, rows in ((torch.nan, 1), (None, 1)):
        model.zero_grad()
        given = e.clone() if fill is None else torch.cat([e, torch.full_like(e[:1], fill)])
        kept = mask if fill is None else torch.cat([mask, mask[:rows]])
        out = model(embeddings=given, mask=kept, stop=EXACT)
        out.state[:2].sum().backward()
        grads.append([p.grad.clone() for p in model.backbone.parameters()])
    for with_nan, alone in zip(*grads, strict=True):
        torch.testing.assert_close(with_nan, alone, rtol=1e-8, atol=1e-8)


def test_autocast_and_inference_mode(model):
    ids = tokens()
    model = model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids, labels=ids)
        out.loss.backward()
    assert out.solution.z.dtype == torch.float32
    with torch.inference_mode():
        got = model(ids, mode=Sequential(), stop=Stop(rtol=1e-3))
    with torch.no_grad():
        want = model(ids, mode=Sequential(), stop=Stop(rtol=1e-3))
    assert torch.equal(got.logits, want.logits)


@pytest.mark.parametrize("length", [1, 2])
def test_short_inputs_are_fine(model, length):
    for mode in (Simultaneous(), Sequential(), Chunked(5)):
        assert model(tokens(2, length), mode=mode).logits.shape == (2, length, VOCAB)


def test_padding_between_real_tokens_is_refused(model):
    ids = tokens(2, 4)
    left, right, hole = (torch.tensor([[1, 1, 1, 1], row]).bool() for row in ([0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]))
    nothing = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    with pytest.raises(ValueError, match=r"padding between them in rows \[1\]"):
        model(ids, mask=hole)
    with torch.no_grad():
        after_left = model(ids, mask=left, use_cache=True).cache
        after_right = model(ids, mask=right, use_cache=True).cache
        after_nothing = model(ids, mask=nothing, use_cache=True).cache
        model(ids, cache=after_left)
        model(ids, cache=after_nothing)
        model(ids, mask=left, cache=after_nothing)
        for cache, mask in ((after_right, None), (after_right, right), (after_left, left)):
            with pytest.raises(ValueError, match="next to each other"):
                model(ids, cache=cache, mask=mask)
        assert after_right.rows(torch.tensor([0])).ended.tolist() == [False]
        model(ids[:1], cache=after_right.rows(torch.tensor([0])))


def cache_of(model, batch):
    with torch.no_grad():
        return model(tokens(batch, 2), use_cache=True).cache


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(tokens().float()), "ids must be whole numbers"),
        (lambda m: m(tokens()[0]), "ids must be whole numbers of shape"),
        (lambda m: m(tokens() + VOCAB), "ids must be from 0 to 12"),
        (lambda m: m(tokens() - VOCAB), "ids must be from 0 to 12"),
        (lambda m: m(tokens(2, 0)), "the length of ids must be >= 1"),
        (lambda m: m(), "ids must be given"),
        (lambda m: m(tokens(), embeddings=torch.zeros(3, 7, WIDTH)), "ids must be given"),
        (lambda m: m(embeddings=torch.zeros(3, 7, WIDTH + 1)), "embeddings must be of shape"),
        (lambda m: m(tokens(), mask=torch.ones(3, 7)), "mask must be bool of shape"),
        (lambda m: m(tokens(), labels=tokens(3, 6)), "labels must be of shape"),
        (lambda m: m(tokens(3), cache=cache_of(m, 2)), "the batch of the cache must be that of the tokens, 3"),
        (lambda m: m(tokens(), mode=Chunked(0)), "size must be a whole number >= 1"),
        (lambda m: m(tokens(), mode="chunk"), "did you mean 'chunked'"),
        (lambda m: m(tokens(), stop=Stop(per="leaf")), "per must be 'token' for a causal map"),
    ],
)
def test_bad_input_is_refused(model, call, message):
    with pytest.raises((ValueError, KeyError), match=message):
        call(model)


def test_options_without_effect_are_refused(explicit):
    with pytest.raises(ValueError, match="stop must be None for an explicit model"):
        explicit(tokens(), stop=Stop())
    with pytest.raises(ValueError, match="labels must be 'shifted' or 'aligned'"):
        make("llama", labels="both")
    with pytest.raises(ValueError, match="cannot differentiate the steps"):
        make("llama", solve=Solve("anderson"), gradient="unrolled")


def test_options_can_be_plain_data():
    backbone = Backbone([Block(Mamba2(WIDTH, d_state=4, headdim=8))])
    how = {"solver": {"name": "anderson", "memory": 4}, "stop": {"max_iter": 9}}
    model = ImplicitLM(backbone, vocab_size=VOCAB, solve=how, no_grad=how, gradient="implicit", mode="sequential")
    assert (model.solve.solver.memory, model.no_grad.stop.max_iter, model.mode) == (4, 9, Sequential())


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids).logits


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["simultaneous", Chunked(2), "auto"], ids=str)
@pytest.mark.parametrize("family", BLOCKS)
def test_a_recording_is_refused_and_that_of_the_explicit_twin_is_right(family, mode):
    model, twin = make(family, mode=mode).eval(), make(family, implicit=False).eval()
    ids = tokens()
    for record in (
        lambda m: torch.jit.trace(m, (ids,), check_trace=False),
        lambda m: torch.export.export(m, (ids,), strict=False),
        lambda m: make_fx(m)(ids),
    ):
        for grad in (False, True):
            with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="a solve cannot be recorded"):
                record(Logits(model))
    traced = torch.jit.trace(Logits(twin), (ids,), check_trace=False)
    other = tokens()
    torch.testing.assert_close(traced(other), twin(other).logits)


@pytest.mark.parametrize("family", BLOCKS)
def test_a_call_has_its_own_solver_stop_and_gradient(family):
    model, ids = contract(make(family)).eval(), tokens()
    budget = {"max_iter": 3, "rtol": 0.0}
    for gradient in ("one_step", {"name": "phantom", "steps": 2}, "implicit"):
        other = copy.deepcopy(model)
        other.solve, other.gradient = Solve("anderson", Stop(**budget)), deqlm.GRADIENTS.make(gradient)
        a = model(ids, labels=ids, solver="anderson", stop=budget, gradient=gradient, on_failure="ignore")
        b = other(ids, labels=ids, on_failure="ignore")
        assert torch.equal(a.loss, b.loss)
        ours, theirs = (torch.autograd.grad(o.loss, m.embedding.weight)[0] for o, m in ((a, model), (b, other)))
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        out = model(ids, solver="broyden", stop=EXACT)
        assert out.solution.solver.name == "broyden"
        assert torch.equal(model.last.steps, out.solution.steps)
        nothing = model(ids, stop=Stop(max_iter=0))
        assert nothing.solution.status.eq(deqlm.Status.BUDGET).all()
        with torch.inference_mode():
            assert model(ids, solver="newton_krylov", stop=EXACT).solution.converged.all()
    model(ids, stop=Stop(max_iter=0), gradient=deqlm.Phantom(2)).logits.sum().backward()


def test_settings_of_a_call_are_checked():
    model, explicit = make("llama"), make("llama", implicit=False)
    with pytest.raises(ValueError, match="gradient must be one without same_value, because evaluation is another"):
        model(tokens(), gradient={"name": "phantom", "same_value": True})
    with pytest.raises(ValueError, match="cannot differentiate the steps of solver 'anderson'"):
        model(tokens(), gradient="unrolled", solver="anderson")
    with pytest.raises(ValueError, match="solver must be None for an explicit model"):
        explicit(tokens(), solver="anderson")
    with pytest.raises(ValueError, match="gradient must be None for an explicit model"):
        explicit(tokens(), gradient="phantom")


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_a_model_has_the_same_value_with_grad_and_without_where_asked(family: str) -> None:
    budget = Solve("fixed_point", Stop(max_iter=2, rtol=0))
    same = Phantom(2, 0.7, same_value=True)
    model = make(family, solve=budget, gradient=same)
    ids = torch.randint(VOCAB, (2, 5))
    with torch.no_grad():
        without, cached = model(ids), model(ids, use_cache=True)
        loose = model(ids, gradient=Phantom(2, 0.7)).logits
    torch.testing.assert_close(without.logits, model(ids).logits.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(cached.logits, without.logits, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(loose, without.logits, rtol=1e-3)
    assert cached.cache is not None
    assert without.solution.residual_of == "previous"
    with pytest.raises(ValueError, match="no_grad must be the same as solve, or left away, beside"):
        make(family, solve=budget, gradient=same, no_grad=Solve("anderson"))
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="one without same_value, because evaluation is another solve"),
    ):
        make(family, solve=budget)(ids, gradient=same)
