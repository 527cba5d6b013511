"""Batches that go on with the one before: the state is handed over, cut from the graph, and saved."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.utils._pytree import tree_map_only

import deqlm
from deqlm.models import LMOptions, Mamba2Options
from deqlm.models.failing import LMFailures
from deqlm.training import Curriculum, Phases, Stage, adamw, checkpoints, warm_up
from examples.loop import LoopOptions, train
from examples.loop.carry import to_plain
from training.toy import Parity, implicit

STAGE = Stage(length=4, rows=3)
OPTIONS = LoopOptions(
    steps=8, curriculum=Curriculum((STAGE,)), warm_up=0, clip=None, carry=True, log_every=1, checkpoint_every=2, keep=9
)


class Stream(Parity):
    """Every third batch begins a new text; the others go on."""

    def batch(self, seed, step, stage):
        return super().batch(seed, step, stage)._replace(fresh=step % 3 == 0)

    def evaluate(self, model, step):
        return {}


def mamba(**changes):
    torch.manual_seed(0)
    few = {"max_iter": 5, "eval_max_iter": 5} if changes.get("implicit", True) else {}
    mixer = Mamba2Options(d_state=4, headdim=8)
    model = LMOptions(vocab_size=2, d_model=8, n_layer=1, mixer=mixer, labels="aligned", **few, **changes).make()
    model.failures = LMFailures("ignore")
    return model


@pytest.mark.parametrize("kind", ["implicit", "explicit", "attention"])
def test_it_is_the_bare_loop_with_a_cache(kind):
    make = {"implicit": mamba, "explicit": lambda: mamba(implicit=False), "attention": implicit}[kind]
    model, bare, task = make(), make(), Stream()
    run = train(model, task, OPTIONS)
    optimizer = adamw(bare, lr=1.0)
    losses, cache = [], None
    for step in range(8):
        for group in optimizer.param_groups:
            group["lr"] = OPTIONS.schedule.at(step)
        batch = task.batch(0, step, STAGE)
        output = bare(batch.ids, labels=batch.targets, cache=None if step % 3 == 0 else cache, use_cache=True)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
        cache = output.cache._replace(layers=tree_map_only(torch.Tensor, torch.Tensor.detach, output.cache.layers))
    assert [record["loss"] for record in run.records] == losses


def test_the_state_of_an_unrolled_phase_is_solved_apart():
    seen = []

    def keep(model, given, named, output):
        seen.append((torch.is_grad_enabled(), named.get("cache"), output.cache))

    model = mamba()
    model.register_forward_hook(keep, with_kwargs=True)
    plan = Phases((warm_up(3, iterations=4), deqlm.training.bounded()))
    train(model, Stream(), OPTIONS.replace(steps=4, phases=plan))
    assert [grad for grad, _, _ in seen[:7]] == [False, True] * 3 + [True]
    assert seen[1][1] is None
    torch.testing.assert_close(seen[3][1].layers[0].state, seen[0][2].layers[0].state)


@pytest.mark.parametrize("make", [mamba, implicit])
def test_a_resumed_training_has_the_state(make, tmp_path):
    model = make()
    run = train(model, Stream(), OPTIONS, folder=tmp_path / "whole")
    for path in checkpoints(tmp_path / "whole")[:2]:
        there = tmp_path / path.stem
        there.mkdir()
        shutil.copy(path, there)
        again = make()
        resumed = train(again, Stream(), OPTIONS, folder=there, resume=True)
        assert [r["loss"] for r in resumed.records] == [r["loss"] for r in run.records]
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_batch_without_targets_hands_its_state_on():
    class Quiet(Stream):
        def batch(self, seed, step, stage):
            batch = super().batch(seed, step, stage)
            return batch._replace(targets=torch.full_like(batch.ids, -100)) if step == 1 else batch

    seen = []

    def keep(model, given, named, output):
        seen.append((torch.is_grad_enabled(), output.cache))

    model, task = mamba(), Quiet()
    model.register_forward_hook(keep, with_kwargs=True)
    run = train(model, task, OPTIONS.replace(steps=2))
    assert [grad for grad, _ in seen] == [True, False]
    assert [(record["step"], record["steps"]) for record in run.records] == [(1, 1)]
    # the second batch left the weights as they were
    with torch.no_grad():
        again = model(task.batch(0, 1, STAGE).ids, cache=seen[0][1], use_cache=True).cache
    assert torch.equal(seen[1][1].layers[0].state, again.layers[0].state)


def test_a_state_is_never_ignored():
    with pytest.raises(ValueError, match="carry must be True for a task whose batch 1 goes on"):
        train(mamba(), Stream(), OPTIONS.replace(carry=False))

    class Late(Stream):
        def batch(self, seed, step, stage):
            return super().batch(seed, step, stage)._replace(fresh=False)

    with pytest.raises(ValueError, match="batch 0 must be fresh"):
        train(mamba(), Late(), OPTIONS)
    with pytest.raises(TypeError, match=r"a checkpoint holds the caches LMCache, .* got LMOutput"):
        to_plain(mamba()(torch.ones(1, 2, dtype=torch.int64)))
    with pytest.raises(ValueError, match="carry must be True or False, got 1"):
        OPTIONS.replace(carry=1)
