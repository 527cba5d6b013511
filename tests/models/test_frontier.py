"""The sliding window: which tokens it freezes and when, that its points are those of the other modes, and its bill."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deqlm
from deqlm.sequence.frozen_prefix import PASSES
from deqlm.sequence.modes import Auto, Chunked, Frontier, Sequential, Simultaneous
from deqlm_solvers import FixedPoint, Solve, Status, Stop
from models.families import BLOCKS, VOCAB, contract, make

LENGTH = 9
WINDOWS = [Frontier(1), Frontier(4), Frontier(50)]
EXACT = Stop(max_iter=500, rtol=1e-12)
ONE_THING = {"rtol": 1e-11, "atol": 1e-11}


@pytest.fixture(params=BLOCKS)
def model(request):
    return contract(make(request.param, depth=1)).eval()


def embeddings(model, batch, length=LENGTH):
    """Return embeddings (B, L, D) whose rows need different numbers of evaluations."""
    e = model.embedding(torch.randint(VOCAB, (batch, length))).detach()
    return e * torch.logspace(-2.7, 0, batch, dtype=e.dtype)[:, None, None]


def tensors(layers):
    return [t for layer in layers for t in layer if t is not None]


@torch.no_grad()
def plain_window(model, e, window, rtol, damping, max_iter=500):
    """Return points and ages of one row by the rule, written out: f of the whole sequence, nothing shared with it."""
    context = model.backbone.open(e)
    u = model.backbone.project(e, context)
    length = e.shape[1]
    z = torch.zeros_like(e)
    front, streak, last, age = 0, [0] * length, [float("inf")] * length, [0] * length
    for _ in range(max_iter * length):
        if front == length:
            break
        y = model.backbone(z, u, context)
        r = (y - z).norm(dim=2)[0].tolist()
        tol = (rtol * y.norm(dim=2))[0].tolist()
        own = range(front, min(front + window, length))
        before, freeze, new = True, True, front
        for t in own:
            before = before and r[t] <= tol[t]
            streak[t] = streak[t] + 1 if before else 0
            q = min(max(r[t] / last[t], 0.1), 0.99)
            freeze = freeze and streak[t] >= PASSES and r[t] * q / (1 - q) <= tol[t]
            new = t + 1 if freeze else new
            last[t], age[t] = r[t], age[t] + 1
        moving = slice(new, own.stop)
        z[:, moving] = z[:, moving] + damping * (y - z)[:, moving]
        front = new
    return z, age


@pytest.mark.parametrize(("window", "damping"), [(1, 1.0), (4, 0.8), (LENGTH, 1.0)])
def test_tokens_are_frozen_by_the_rule(model, window, damping):
    e = embeddings(model, 1)
    model.no_grad = Solve(FixedPoint(damping=damping), Stop(max_iter=500, rtol=1e-3))
    want, age = plain_window(model, e, window, 1e-3, damping)
    with torch.no_grad():
        sol = model(embeddings=e, mode=Frontier(window)).solution
    torch.testing.assert_close(sol.z, want, **ONE_THING)
    assert (sol.token_steps[0] <= torch.tensor(age)).all()
    assert (sol.token_steps > 0).all()
    assert sol.converged.all()


@pytest.mark.parametrize("mode", WINDOWS, ids=str)
@pytest.mark.parametrize("stop", [Stop(rtol=0.05), Stop(max_iter=2, rtol=1e-9)], ids=str)
def test_one_evaluation_at_the_joined_points_reproduces_everything(model, mode, stop):
    e = embeddings(model, 3)
    with torch.no_grad():
        out = model(embeddings=e, mode=mode, stop=stop, use_cache=True)
        context, z = model.backbone.open(e), out.solution.z
        u, empty = model.backbone.project(e, context), model.backbone.empty_cache(3)
        y, layers = model.backbone.forward_chunk(z, u, empty, context)
    torch.testing.assert_close(out.state, y, **ONE_THING)
    for ours, theirs in zip(tensors(out.cache.layers), tensors(layers), strict=True):
        torch.testing.assert_close(ours, theirs, **ONE_THING)
    residual = (y - z).norm(dim=2)
    torch.testing.assert_close(out.solution.residual, residual.amax(1), rtol=1e-6, atol=1e-11)
    passes = (residual <= stop.rtol * y.norm(dim=2) * (1 + 1e-9)).all(1)
    assert torch.equal(out.solution.converged, passes)


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 12),
    size=st.integers(1, 14),
    kind=st.sampled_from(["frontier", "chunked", "auto size", "previous"]),
    family=st.sampled_from(sorted(BLOCKS)),
    reach=st.sampled_from([0.02, 0.1, 0.2]),
    pads=st.integers(0, 3),
)
def test_every_shape_and_difficulty_has_the_plain_answer(batch, length, size, kind, family, reach, pads):
    torch.manual_seed(length)
    model = contract(make(family, depth=1), reach=reach).eval()
    mode = {"frontier": Frontier(size), "chunked": Chunked(size), "auto size": Chunked("auto")}.get(kind)
    mode = Chunked(size, start="previous") if mode is None else mode
    e = embeddings(model, batch, length)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, : min(pads, length - 1)] = False
    with torch.no_grad():
        want = model(embeddings=e, mask=mask, mode=Simultaneous(), stop=EXACT)
        got = model(embeddings=e, mask=mask, mode=mode, stop=EXACT)
    assert want.solution.converged.all()
    assert got.solution.converged.all()
    assert (got.logits - want.logits).abs().max() <= 1e-9 * want.logits.abs().max()
    assert not got.solution.token_steps[~mask].any()


@pytest.mark.parametrize("mode", [Frontier(4)], ids=str)
def test_rows_know_nothing_of_each_other(model, mode):
    e = embeddings(model, 3)
    stop = Stop(rtol=1e-4, max_iter=200)
    with torch.no_grad():
        together = model(embeddings=e, mode=mode, stop=stop).solution
        alone = [model(embeddings=row[None], mode=mode, stop=stop).solution for row in e]
    assert torch.equal(together.steps, torch.cat([a.steps for a in alone]))
    assert torch.equal(together.token_steps, torch.cat([a.token_steps for a in alone]))
    assert len(together.steps.unique()) > 1
    torch.testing.assert_close(together.z, torch.cat([a.z for a in alone]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("compact", [True, False])
def test_row_evaluations_are_the_steps_of_the_rows_and_the_commits(model, compact):
    commits = []
    plain = model.backbone.forward_chunk
    e = embeddings(model, 4)
    with torch.no_grad():
        want = model(embeddings=e, mode=Frontier(4), stop=Stop(rtol=1e-5, compact=compact)).solution
        model.backbone.forward_chunk = lambda z, *rest: commits.append(z.shape[:2]) or plain(z, *rest)
        sol = model(embeddings=e, mode=Frontier(4), stop=Stop(rtol=1e-5, compact=compact)).solution
    cost = sol.cost
    assert cost == want.cost
    assert cost.evaluations == len(commits)
    assert cost.row_evaluations == sum(rows for rows, _ in commits)
    assert cost.token_evaluations == sum(rows * tokens for rows, tokens in commits)
    extra = cost.row_evaluations - int(sol.steps.sum())
    # a commit of all four rows for every two tokens at most, and a probe of some rows beside all
    most = 4 * (LENGTH // 2 + 1) + 8
    assert 0 <= extra <= most if compact else extra > 0


def test_a_row_that_fails_leaves_the_others_alone(model):
    e = embeddings(model, 3, length=9)
    stop = Stop(max_iter=40, rtol=1e-4)
    with torch.no_grad():
        want = model(embeddings=e, mode=Frontier(4), stop=stop)
        e[1, 5] = torch.nan
        got = model(embeddings=e, mode=Frontier(4), stop=stop)
    assert got.solution.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert got.solution.residual[1].isinf()
    assert got.solution.z.isfinite().all()
    torch.testing.assert_close(got.logits[[0, 2]], want.logits[[0, 2]], rtol=1e-9, atol=1e-9)


def test_tokens_that_do_not_settle_are_passed_over():
    model = contract(make("mamba2", depth=1), reach=0.1)
    with torch.no_grad():
        sol = model(torch.randint(VOCAB, (2, 9)), mode=Frontier(4), stop=Stop(max_iter=3, rtol=1e-14)).solution
    assert sol.status.tolist() == [Status.MAX_ITER] * 2
    assert sol.steps.tolist() == [9, 9]
    assert sol.residual.isfinite().all()


def test_a_map_that_works_in_place_is_refused():
    model = make("mamba2", depth=1)
    plain = model.backbone.forward_chunk
    model.backbone.forward_chunk = lambda z, *rest: plain(z.mul_(0.5), *rest)
    with torch.no_grad(), pytest.raises(ValueError, match="f wrote into its argument in place"):
        model(torch.randint(VOCAB, (2, 5)), mode=Frontier(2))


def test_padding_is_inert(model):
    rows = [embeddings(model, 1, length)[0] for length in (7, 3, 1)]
    padded = torch.full((3, 9, rows[0].shape[1]), torch.nan, dtype=torch.float64)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for b, row in enumerate(rows):
        padded[b, 9 - len(row) :], mask[b, 9 - len(row) :] = row, True
    with torch.no_grad():
        got = model(embeddings=padded, mask=mask, mode=Frontier(4), stop=Stop(rtol=1e-4), use_cache=True)
        again = model(embeddings=rows[0][None, :1].expand(3, 1, -1), cache=got.cache, stop=EXACT)
        for b, row in enumerate(rows):
            alone = model(embeddings=row[None], mode=Frontier(4), stop=Stop(rtol=1e-4), use_cache=True)
            torch.testing.assert_close(got.logits[b, mask[b]], alone.logits[0], rtol=1e-9, atol=1e-9)
            assert torch.equal(got.solution.token_steps[b, mask[b]], alone.solution.token_steps[0])
            follows = model(embeddings=rows[0][None, :1], cache=alone.cache, stop=EXACT)
            torch.testing.assert_close(again.logits[b], follows.logits[0], rtol=1e-9, atol=1e-9)
    assert not got.solution.z[~mask].any()


@pytest.mark.parametrize("mode", [Frontier(4), Chunked("auto")], ids=str)
def test_training_takes_phantom_steps_of_the_whole_sequence(model, mode):
    e = embeddings(model, 2)
    model.solve = model.no_grad = Solve(FixedPoint(), Stop(max_iter=60, rtol=1e-3, per="token"))
    model.gradient = deqlm.Phantom(3, 0.8)
    out = model(embeddings=e, mode=mode)
    out.state.square().sum().backward()
    got = [p.grad.clone() for p in model.backbone.parameters()]
    assert out.solution.cost.token_evaluations > 3 * 2 * LENGTH

    model.zero_grad()
    with torch.no_grad():
        z = model(embeddings=e, mode=mode).solution.z
    context = model.backbone.open(e)
    u = model.backbone.project(e, context)
    for _ in range(3):
        z = torch.lerp(z, model.backbone(z, u, context), 0.8)
    z.square().sum().backward()
    # sizes may differ from call to call in nothing but the points, within the tolerance
    loose = {"rtol": 1e-9, "atol": 1e-9} if isinstance(mode, Frontier) else {"rtol": 5e-2, "atol": 1e-2}
    torch.testing.assert_close(out.state, z, **loose)
    for ours, theirs in zip(got, model.backbone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=loose["rtol"], atol=loose["atol"] * theirs.grad.abs().max())


@pytest.mark.slow
def test_the_error_is_not_that_of_a_token_frozen_at_its_first_small_step():
    model = contract(make("mamba2"), reach=0.5).eval()
    e = embeddings(model, 4, length=48)
    stop = Stop(max_iter=400, rtol=0.05)
    with torch.no_grad():
        exact = model(embeddings=e, mode=Sequential(), stop=EXACT).solution.z
        errors = []
        for mode in (Frontier(8), Chunked(16)):
            z = model(embeddings=e, mode=mode, stop=stop).solution.z
            errors.append(((z - exact).norm(dim=2) / exact.norm(dim=2)).max().item())
    assert errors[0] <= 1.2 * errors[1]


def test_reads_of_the_device_are_one_per_evaluation(model, monkeypatch):
    reads = []
    for name in ("cpu", "item", "tolist", "__bool__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, *args, plain=plain: reads.append(1) or plain(t, *args))
    e = embeddings(model, 1)
    with torch.no_grad():
        sol = model(embeddings=e, mode=Frontier(4), stop=Stop(rtol=1e-4)).solution
    assert len(reads) <= int(sol.steps.sum()) + 2


def test_auto_solves_at_once_where_that_converges():
    model = contract(make("mamba2", depth=1)).eval()
    e = embeddings(model, 1, length=34)
    stop = Stop(max_iter=300, rtol=1e-3)
    with torch.no_grad():
        auto, whole = (model(embeddings=e, mode=mode, stop=stop, use_cache=True) for mode in (Auto(), Simultaneous()))
    assert torch.equal(auto.logits, whole.logits)
    assert auto.solution.cost == whole.solution.cost


@pytest.mark.slow
@pytest.mark.parametrize("family", BLOCKS)
def test_auto_goes_on_in_chunks_where_it_does_not(family):
    model = contract(make(family, depth=1), reach=0.6).eval()
    e = embeddings(model, 2, length=40)
    stop = Stop(max_iter=500, rtol=1e-12)
    with torch.no_grad():
        auto, whole = (model(embeddings=e, mode=mode, stop=stop, use_cache=True) for mode in ("auto", "simultaneous"))
    assert int(whole.solution.steps.max()) > Auto.TRIED
    torch.testing.assert_close(auto.logits, whole.logits, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(tensors(auto.cache.layers), tensors(whole.cache.layers), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_auto_leaves_the_tokens_together_for_a_whole_solver(model):
    e = embeddings(model, 1, length=Auto.SHORT + 2)
    model.no_grad = Solve(deqlm.Fallback("anderson", "fixed_point"), Stop(max_iter=500, rtol=1e-9))
    auto, whole = (model(embeddings=e, mode=mode) for mode in (Auto(), Simultaneous()))
    assert auto.solution.converged.all()
    assert auto.solution.cost == whole.solution.cost
    assert torch.equal(auto.logits, whole.logits)


def test_auto_is_one_solve_in_training_and_with_a_budget():
    model = make("mamba2", depth=1)
    ids = torch.randint(VOCAB, (2, 40))
    assert model.mode == Auto()
    assert torch.equal(model(ids).logits, model(ids, mode=Simultaneous()).logits)
    budget = Stop(max_iter=5, rtol=0)
    with torch.no_grad():
        assert torch.equal(model(ids, stop=budget).logits, model(ids, stop=budget, mode=Simultaneous()).logits)


def test_sizes_are_tried_on_tokens_of_the_answer():
    model = contract(make("mamba2", depth=1)).eval()
    ids = torch.randint(VOCAB, (1, 24))
    with torch.no_grad():
        tried, fixed = (model(ids, mode=Chunked(size), stop=Stop(rtol=1e-3)) for size in ("auto", 16))
    assert tried.solution.cost == fixed.solution.cost
    assert torch.equal(tried.logits, fixed.logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"no_grad": Solve("anderson", Stop(rtol=1e-3))}, "solver must be FixedPoint with mode Frontier"),
        ({"stop": Stop(max_iter=4, rtol=0)}, "stop must be a tolerance with mode Frontier"),
        ({"stop": Stop(keep="best_f")}, "keep must be 'best' with mode Frontier"),
        ({"stop": Stop(test_every=2)}, "test_every must be 1 with mode Frontier"),
        ({"stop": Stop(patience=3)}, "patience must be None with mode Frontier"),
    ],
)
def test_what_a_window_cannot_honour_is_refused(change, message):
    model = make("mamba2", depth=1)
    model.no_grad = change.pop("no_grad", model.no_grad)
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model(torch.randint(VOCAB, (1, 5)), mode=Frontier(2), **change)


@pytest.mark.parametrize(
    ("make_mode", "message"),
    [
        (lambda: Frontier(0), "window must be a whole number >= 1, got 0"),
        (lambda: Frontier(2.0), "window must be a whole number >= 1, got 2.0"),
        (lambda: Chunked(0), "size must be a whole number >= 1, got 0"),
        (lambda: Chunked("big"), "size must be a whole number >= 1, got 'big'"),
        (lambda: Chunked(2, start="last"), "start must be 'zero' or 'previous', got 'last'"),
        (lambda: Sequential(start=1), "start must be 'zero' or 'previous', got 1"),
        (lambda: Chunked("auto").cuts(3), "no cuts before a call"),
    ],
)
def test_bad_modes_are_refused(make_mode, message):
    with pytest.raises(ValueError, match=message):
        make_mode()


def test_caches_that_do_not_fit_are_refused():
    model, other = make("mamba2"), make("llama")
    ids = torch.randint(VOCAB, (2, 4))
    with torch.no_grad():
        cache = model(ids, use_cache=True).cache
        with pytest.raises(TypeError, match=r"cache must hold .*KVCache.*, got .*Mamba2Cache"):
            other(ids, cache=cache)
        with pytest.raises(ValueError, match="the blocks of the cache must be the model's 1, got 2"):
            make("mamba2", depth=1)(ids, cache=cache)
        with pytest.raises(ValueError, match="the batch of the cache must be that of the tokens, 1, got 2"):
            model(ids[:1], cache=cache)
        with pytest.raises(TypeError, match="cache must be the LMCache of an earlier call, got tuple"):
            model(ids, cache=cache.layers)
        states = [layer._replace(state=layer.state[:, :1]) for layer in cache.layers]
        with pytest.raises(ValueError, match=r"the state of the cache must be of shape \(H, P, N\)"):
            model(ids, cache=cache._replace(layers=tuple(states)))
