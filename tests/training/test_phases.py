"""Phases are data; switching swaps two frozen objects; what a phase computes is what the paper says."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import deqlm
from deqlm.models import Backbone, ImplicitLM
from deqlm.training import Phase, Phases, bounded, free, warm_up
from models.families import BLOCKS, VOCAB, make

PLAN = Phases((warm_up(3), bounded(8), free(max_iter=32)))


@pytest.fixture(params=BLOCKS)
def model(request):
    return make(request.param)


def test_the_step_says_the_phase():
    assert [PLAN.at(s).gradient.name for s in (0, 2, 3, 10, 11, 10**6)] == ["unrolled"] * 2 + ["phantom"] * 4
    assert [PLAN.at(s).stop.max_iter for s in (0, 3, 10, 11)] == [4, 4, 4, 32]
    assert [s for s in range(20) if PLAN.starts(s)] == [0, 3, 11]
    assert PLAN.ends() == [3, 11]


def test_behind_the_end_the_last_phase_goes_on():
    assert Phases((warm_up(2), free(3))).at(99) == free(3)


def test_phases_are_plain_data():
    data = json.loads(json.dumps(PLAN.to_dict()))
    assert Phases.from_dict(data) == PLAN


def test_switching_swaps_two_objects_and_nothing_else(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = dict(vars(model))
    PLAN.apply(model, 11)
    assert (model.solve, model.gradient) == (free(max_iter=32).solve, deqlm.Phantom(4, 0.8))
    changed = {name for name, value in vars(model).items() if value is not kept[name]}
    assert changed == {"solve", "gradient"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_deq_has_phases_too():
    deq = deqlm.DEQ(nn.Linear(3, 3), on_failure="ignore")
    warm_up(iterations=5).apply(deq)
    y, sol = deq(torch.ones(2, 3), with_stats=True)
    assert sol.cost.evaluations == 5
    y.sum().backward()


def test_other_modules_have_none():
    with pytest.raises(TypeError, match="Linear has no 'solve'"):
        bounded().apply(nn.Linear(3, 3))


def recursion(model, ids, iterate):
    """Return state and gradients of ``iterate(f, zeros)``, written out by hand."""
    e = model.embedding(ids)
    context = model.backbone.open(e)
    u = model.backbone.project(e, context)
    return iterate(lambda z: model.backbone(z, u, context), torch.zeros_like(e))


def compare(model, ids, iterate):
    out = model(ids)
    out.state.square().sum().backward()
    got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    want = recursion(model, ids, iterate)
    want.square().sum().backward()
    torch.testing.assert_close(out.state, want, rtol=1e-12, atol=1e-12)
    wanted = [p.grad for p in model.parameters() if p.grad is not None]
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    return out.solution


def test_warm_up_is_one_full_step_and_damped_ones(model):
    def iterate(f, z):
        z = f(z)
        for _ in range(3):
            z = 0.2 * z + 0.8 * f(z)
        return z

    warm_up().apply(model)
    sol = compare(model, torch.randint(VOCAB, (3, 7)), iterate)
    assert sol.cost.evaluations == 4


@pytest.mark.parametrize(("phase", "most", "steps"), [(bounded(), 4, 1), (free(), 24, 4), (free(max_iter=32), 32, 4)])
def test_bounded_and_free_keep_the_best_image_and_take_phantom_steps(model, phase, most, steps):
    """The rule by which the authors trained, by hand."""

    def iterate(f, z):
        with torch.no_grad():
            best, kept = torch.full((len(z),), 1e8, dtype=z.dtype), z
            for _ in range(most):
                fz = f(z)
                ratio = (fz - z).flatten(1).norm(dim=1) / (fz.flatten(1).norm(dim=1) + 1e-9)
                kept = torch.where((ratio < best)[:, None, None], fz, kept)
                best = torch.minimum(best, ratio)
                z = fz
                if ratio.max() < 0.05:
                    break
        z = kept
        for _ in range(steps):
            z = 0.8 * f(z) + 0.2 * z
        return z

    phase.apply(model)
    sol = compare(model, torch.randint(VOCAB, (3, 7)), iterate)
    assert sol.cost.evaluations <= most + steps


def test_every_parameter_learns_in_every_phase(model):
    ids = torch.randint(VOCAB, (2, 6))
    for step in (0, 3, 11):
        PLAN.apply(model, step)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not idle, (step, idle)


def test_a_training_run_learns_through_all_phases():
    torch.manual_seed(0)
    model = ImplicitLM(Backbone([BLOCKS["llama"]()]), vocab_size=VOCAB, labels="aligned")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    plan = Phases((warm_up(10), bounded(20), free()))
    ids = torch.randint(VOCAB, (8, 12))
    labels = ids.cumsum(1) % VOCAB
    losses = []
    for step in range(40):
        plan.apply(model, step)
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1"),
        ({"solver": "anderson", "gradient": "unrolled"}, "cannot differentiate the steps"),
        ({"gradient": "phantm"}, "did you mean 'phantom'"),
        ({"stop": {"max_itr": 3}}, "did you mean 'max_iter'"),
    ],
)
def test_bad_phases_are_refused(options, message):
    fields = {"solver": "fixed_point", "stop": deqlm.Stop(), "gradient": "phantom", **options}
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        Phase(**fields)


def test_a_phase_without_end_is_the_last():
    with pytest.raises(ValueError, match="given, but for the last phase"):
        Phases((free(), bounded(3)))
    with pytest.raises(ValueError, match="at least one Phase"):
        Phases(())
    with pytest.raises(ValueError, match="step must be a whole number >= 0"):
        PLAN.at(-1)
