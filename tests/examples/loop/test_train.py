"""What the loop does at a step, when it ends, and what it reports."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import deqlm
from deqlm.training import Curriculum, Phases, Stage, adamw, bounded, checkpoints, load_checkpoint, warm_up
from examples.loop import Batch, LoopOptions, TrainingError, accuracy, train
from training.toy import OPTIONS, PLAN, Parity, implicit, recurrent

ONE = Curriculum((Stage(length=4, rows=8),))
SHORT = LoopOptions(steps=6, curriculum=ONE, lr=0.01, warm_up=2, clip=0.5, log_every=1)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_is_the_bare_loop():
    model, bare, task = implicit(), implicit(), Parity()
    run = train(model, task, SHORT)
    optimizer = adamw(bare, lr=1.0)
    losses, evaluations = [], []
    for step in range(6):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = SHORT.schedule.at(step)
        batch = task.batch(0, step, ONE.stages[0])
        output = bare(batch.ids, labels=batch.targets)
        optimizer.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(bare.parameters(), 0.5)
        optimizer.step()
        losses.append(output.loss.item())
        evaluations.append(output.solution.cost.evaluations)
    assert same_weights(model, bare)
    assert [record["loss"] for record in run.records] == losses
    assert [record["evaluations"] for record in run.records] == evaluations
    assert run.cost["evaluations"] == sum(evaluations)
    assert (run.ended, run.steps) == ("steps", 6)


def test_the_log_adds_up_and_covers_every_step(tmp_path):
    every, sparse = (train(implicit(), Parity(), SHORT.replace(log_every=n)) for n in (1, 4))
    assert [(r["step"], r["steps"]) for r in sparse.records] == [(4, 4), (6, 2)]
    first, second = every.records[:4], sparse.records[0]
    assert second["loss"] == pytest.approx(sum(r["loss"] for r in first) / 4)
    for name in ("evaluations", "row_evaluations"):
        assert second[name] == sum(r[name] for r in first)
        assert sum(r[name] for r in sparse.records) == sparse.cost[name] == every.cost[name]


def test_backward_solves_are_counted_apart():
    model = implicit()
    model.gradient = deqlm.Implicit()
    run = train(model, Parity(), SHORT)
    assert run.cost["adjoint_vjps"] > 0
    assert run.cost["adjoint_vjps"] == sum(record["adjoint_vjps"] for record in run.records)


@pytest.mark.parametrize("read_every", [2, 5])
def test_reading_seldom_changes_no_number(read_every):
    options = SHORT.replace(log_every=10)
    a, b = implicit(), implicit()
    often, seldom = train(a, Parity(), options), train(b, Parity(), options.replace(read_every=read_every))
    assert same_weights(a, b)
    assert often.records[0]["loss"] == seldom.records[0]["loss"]
    assert often.cost == seldom.cost


def test_it_stops_at_the_target():
    plan = Curriculum((Stage(length=2, rows=32, until=0.9, window=2), Stage(length=3, rows=32, until=0.95, window=4)))
    run = train(recurrent(), Parity(), LoopOptions(steps=2000, curriculum=plan, lr=0.03, warm_up=0))
    assert (run.ended, run.stage) == ("target", 1)
    assert 0.95 < run.accuracy <= 1
    assert run.steps < 2000
    assert {record["length"] for record in run.records} == {2, 3}


def test_it_stops_when_time_is_up(monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr("examples.loop.watch.time.process_time", lambda: next(ticks))
    run = train(recurrent(), Parity(), SHORT.replace(steps=10**4, time_limit=50, clock="cpu"))
    assert run.ended == "time"
    assert 1 < run.steps < 50


def test_stages_bring_their_phases():
    lengths = []
    stages = [Stage(length=n, rows=4, steps=2, phase=warm_up(iterations=n)) for n in (2, 5)]
    model = implicit()
    model.register_forward_hook(lambda _, given, out: lengths.append((out.logits.shape[1], out.solution.cost)))
    train(model, Parity(), SHORT.replace(curriculum=Curriculum(tuple(stages)), steps=4, evaluate_every=None))
    assert [(n, cost.evaluations) for n, cost in lengths[:4]] == [(2, 2), (2, 2), (5, 5), (5, 5)]


def test_phases_go_by_the_step():
    plan = Phases((warm_up(4, iterations=3), bounded()))
    run = train(implicit(), Parity(), SHORT.replace(phases=plan))
    assert [record["evaluations"] for record in run.records] == [3] * 4 + [5] * 2  # 4 and one phantom step


def test_phases_of_a_model_without_a_solve_are_refused():
    for model in (recurrent(), implicit(implicit=False)):
        with pytest.raises((ValueError, TypeError), match=r"phases need a model that solves|has no 'solve'"):
            train(model, Parity(), SHORT.replace(phases=Phases((bounded(),))))


def test_an_evaluation_disturbs_nothing():
    class Drawing(Parity):
        def evaluate(self, model, step):
            torch.rand(3)
            return super().evaluate(model, step)

    a, b = recurrent().eval(), recurrent()
    before = torch.get_rng_state()
    run = train(a, Drawing(), SHORT.replace(evaluate_every=2))
    train(b, Parity(), SHORT)
    assert same_weights(a, b)
    assert [e["step"] for e in run.evaluations] == [2, 4, 6]
    assert not any(e["training"] for e in run.evaluations)
    assert not a.training
    assert b.training
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("where", ["loss", "grad_norm"])
def test_what_is_not_finite_stops_with_the_last_checkpoint(where, tmp_path):
    class Breaks(Parity):
        def batch(self, seed, step, stage):
            self.step = step
            return super().batch(seed, step, stage)

    task, model = Breaks(), recurrent()

    def spoil(value):
        return value * math.nan if task.step == 9 else value

    if where == "loss":
        model.register_forward_hook(lambda _, given, out: out._replace(loss=spoil(out.loss)))
    else:
        model.head.weight.register_hook(spoil)
    options = OPTIONS.replace(read_every=2, log_every=2)
    message = rf"{where} is nan at step 9, .* the last checkpoint is .*step-00000008.ckpt; try a smaller lr"
    with pytest.raises(TrainingError, match=message):
        train(model, task, options, folder=tmp_path)
    step, state = load_checkpoint(checkpoints(tmp_path)[-1])
    assert step == 8
    assert all(value.isfinite().all() for value in state["model"].values())


def test_padding_reaches_the_model():
    class Padded(Parity):
        def batch(self, seed, step, stage):
            ids, targets = super().batch(seed, step, stage)[:2]
            mask = torch.ones_like(ids, dtype=torch.bool)
            mask[:, :2] = False
            return Batch(ids, targets.masked_fill(~mask, -100), mask)

    seen = []
    model = implicit()
    model.register_forward_pre_hook(lambda _, given, named: seen.append(named.get("mask")), with_kwargs=True)
    train(model, Padded(), SHORT.replace(steps=3))
    assert not any(mask[:, :2].any() for mask in seen[:3])


def test_accuracy_counts_what_counts():
    logits = torch.eye(3)[None]
    assert accuracy(logits, torch.tensor([[0, 1, 0]])).item() == pytest.approx(2 / 3)
    assert accuracy(logits, torch.tensor([[-100, 1, -100]])).item() == 1
    assert accuracy(logits, torch.full((1, 3), -100)).isnan()


def test_options_are_plain_data():
    options = OPTIONS.replace(phases=Phases((warm_up(3), bounded())))
    assert LoopOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    assert "steps" in options.identity()
    assert "steps" not in options.replace(decay="constant").identity()
    assert "keep" not in options.identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1"),
        ({"steps": 3}, "steps must be > warm_up=3 where decay='cosine'"),
        ({"lr": -1}, "lr must be > 0"),
        ({"betas": (0.9, 1)}, r"betas must be in \[0, 1\), got 1"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0"),
        ({"clip": 0}, "clip must be > 0"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"read_every": 2}, "log_every must be a multiple of read_every=2, got 5"),
        ({"evaluate_every": 0}, "evaluate_every must be a whole number >= 1"),
        ({"time_limit": 0}, "time_limit must be > 0"),
        ({"clock": "sun"}, "clock must be 'wall' or 'cpu'"),
        ({"curriculum": [PLAN]}, "curriculum must be a Curriculum"),
        ({"phases": bounded()}, "phases must be a Phases"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        OPTIONS.replace(**change)


def test_two_sources_of_phases_are_refused():
    stage = Stage(length=2, rows=2, phase=warm_up())
    with pytest.raises(ValueError, match="phases must be None where the stages of the curriculum have phases"):
        OPTIONS.replace(curriculum=Curriculum((stage,)), phases=Phases((bounded(),)))
    with pytest.raises(TypeError, match="did you mean 'clip'"):
        OPTIONS.replace(clipp=1)
