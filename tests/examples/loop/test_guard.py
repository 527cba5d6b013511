"""The guard: what it calls a fall, where it returns to, and that it survives an interruption."""

from __future__ import annotations

import doctest
import json
import logging
import math

import pytest
import torch

from deqlm.training import Curriculum, Stage, checkpoints
from examples.loop import Guard, LoopOptions, TrainingError, guard, train
from examples.loop.guard import Fall, Watchman
from training.toy import Parity, implicit, recurrent

PLAN = Curriculum((Stage(length=4, rows=16),))
OPTIONS = LoopOptions(
    steps=30, curriculum=PLAN, lr=0.01, warm_up=2, decay="constant", log_every=5, guard=Guard(window=5)
)


class Spoiled(Parity):
    """Parity whose answers are turned round, or without meaning, from a step on."""

    def __init__(self, at, until=10**6):
        super().__init__(at=at, until=until)
        self.at, self.until = at, until

    def batch(self, seed, step, stage):
        batch = super().batch(seed, step, stage)
        spoil = self.at <= step < self.until
        return batch._replace(targets=torch.zeros_like(batch.targets)) if not spoil else batch


def test_docstrings():
    assert not doctest.testmod(guard).failed


def watched(losses, guard, *, stages=None, converged=None):
    """Return the falls of a series of losses, one per step, and the weights kept in the end."""
    watchman, falls = Watchman(guard), []
    for step, loss in enumerate(losses, 1):
        watchman.observe(
            0 if stages is None else stages[step - 1], loss, None if converged is None else converged[step - 1]
        )
        fall = watchman.judge(step, lambda step=step: {"step": step})
        falls += [fall] if fall else []
    return falls, watchman


def test_a_loss_that_comes_back_is_a_fall():
    losses = [0.7, 0.7, 0.2, 0.2, 0.1, 0.1, 0.2, 0.2, 0.6, 0.6]
    converged = [0.5] * 8 + [0.0] * 2
    falls, watchman = watched(losses, Guard(window=2, rise=0.5, factor=0.25), converged=converged)
    assert falls == [Fall(10, 6, pytest.approx(0.6), pytest.approx(0.1), 0.0, 0.5, 0.25)]
    assert watchman.best is not None
    assert watchman.best["weights"] == {"step": 6}
    assert watchman.rate == 0.25
    assert falls[0].line() == (
        "collapsed at step 10: the loss went from 0.1 to 0.6 and the share of converged rows from 0.50 to 0.00; "
        "back to the weights of step 6, with 0.25 times the learning rate"
    )


def test_a_loss_that_never_fell_is_none():
    assert watched([0.7, 0.69, 0.72, 0.7] * 5, Guard(window=2))[0] == []


def test_a_longer_stage_starts_anew():
    losses, stages = [0.7, 0.01, 0.5, 0.4, 0.7], [0, 0, 1, 1, 1]
    falls, _ = watched(losses, Guard(window=1), stages=stages)
    assert [(fall.step, fall.best_step) for fall in falls] == [(5, 4)]


def test_a_longer_stage_that_only_guesses_returns_to_the_one_before():
    losses, stages = [0.8, 0.02, 0.01, 1.5, 0.9, 0.8, 0.8, 0.8, 0.8], [0, 0, 0, *[2] * 6]
    falls, _ = watched(losses, Guard(window=1, patience=3), stages=stages)
    assert [(fall.step, fall.best_step, fall.best_loss) for fall in falls] == [(6, 3, 0.01), (9, 3, 0.01)]


def test_a_stage_shorter_than_a_window_is_returned_to():
    watchman = Watchman(Guard(window=4, patience=1))
    for step, loss in enumerate([0.7, 0.7, 0.7, 0.7, 0.1], 1):
        watchman.observe(0, loss, None)
        watchman.judge(step, lambda step=step: step)
    watchman.leave(5, lambda: 5)
    for step in (6, 7):
        watchman.observe(1, 0.02, None)
        assert watchman.judge(step, lambda: -1) is None
    watchman.leave(7, lambda: 7)
    for step in range(8, 12):
        watchman.observe(2, 0.9, None)
        fall = watchman.judge(step, lambda: -1)
    assert fall is not None
    assert (fall.step, fall.best_step, fall.best_loss) == (11, 7, pytest.approx(0.02))
    assert watchman.refuge is not None
    assert watchman.refuge["weights"] == 7


def test_a_longer_stage_that_learns_slowly_is_let_alone():
    losses, stages = [0.8, 0.02, 1.5, 0.9, 0.5, 0.55, 0.4, 0.55, 0.3], [0, 0, *[1] * 7]
    assert watched(losses, Guard(window=1, patience=3), stages=stages)[0] == []


def test_a_loss_that_is_no_number_is_a_fall_at_once():
    falls, _ = watched([0.7, 0.7, 0.1, 0.1, 0.1, math.nan], Guard(window=2))
    assert [(fall.step, fall.best_step, fall.loss) for fall in falls] == [(6, 4, None)]
    assert "to a number that is not finite;" in falls[0].line()


def test_after_the_last_answer_it_only_looks_on():
    losses = [0.7, 0.1] + [0.7] * 9
    assert [fall.rate for fall in watched(losses, Guard(window=1, most=2, factor=0.1))[0]] == pytest.approx([0.1, 0.01])


@pytest.mark.parametrize("make", [recurrent, implicit])
def test_the_training_returns_to_its_best_weights_at_a_lower_rate(make, caplog):
    model, seen = make(), {}
    options = OPTIONS.replace(lr=0.03, guard=Guard(window=5, rise=0.1))
    task = Spoiled(at=15)

    def see(trained, _):
        seen[len(seen)] = {name: value.clone() for name, value in trained.state_dict().items()}

    model.register_forward_pre_hook(see)
    with caplog.at_level(logging.WARNING, "examples.loop"):
        run = train(model, task, options)
    fall = run.falls[0]
    assert (fall["step"], fall["best_step"]) == (20, 15)
    assert (fall["converged"] is None) == (make is recurrent)
    # the forward of step n sees the weights behind n steps
    assert all(torch.equal(seen[20][name], value) for name, value in seen[15].items())
    assert run.records[3]["lr"] == pytest.approx(0.03)
    assert run.records[4]["lr"] == pytest.approx(0.03 * 0.3)
    assert "collapsed at step 20" in caplog.text
    json.dumps(run.summary(), allow_nan=False)


def test_without_a_fall_the_guard_changes_no_number():
    a, b = implicit(), implicit()
    guarded = train(a, Parity(), OPTIONS)
    bare = train(b, Parity(), OPTIONS.replace(guard=None))
    assert guarded.falls == bare.falls == []
    assert [r["loss"] for r in guarded.records] == [r["loss"] for r in bare.records]
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_an_interrupted_training_falls_and_returns_the_same(tmp_path):
    options = OPTIONS.replace(lr=0.03, guard=Guard(window=5, rise=0.1), checkpoint_every=4, keep=99)
    whole_model, model = implicit(), implicit()
    whole = train(whole_model, Spoiled(at=15), options, folder=tmp_path)
    for path in checkpoints(tmp_path):
        if path.name > "step-00000016":
            path.unlink()
    again = train(model, Spoiled(at=15), options, folder=tmp_path, resume=True)
    assert whole.falls == again.falls != []
    pairs = zip(whole_model.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


def test_a_broken_loss_before_anything_was_kept_ends_the_training():
    model = recurrent()
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="loss is nan at step 0"):
        train(model, Parity(), OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window must be a whole number >= 1, got 0"),
        ({"rise": 1.0}, r"rise must be in \(0, 1\), got 1.0"),
        ({"patience": 0}, "patience must be a whole number >= 1, got 0"),
        ({"factor": 1.0}, r"factor must be in \(0, 1\), got 1.0"),
        ({"most": 0}, "most must be a whole number >= 1, got 0"),
    ],
)
def test_a_guard_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Guard(**change)
    with pytest.raises(ValueError, match=message):
        OPTIONS.replace(guard=change)
