"""A training that was interrupted, by whatever, ends with the numbers of one that was not."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deqlm.training import CheckpointError, Phases, bounded, checkpoints, warm_up
from examples.loop import train
from training.toy import OPTIONS, Parity, implicit, recurrent

ROOT = Path(__file__).resolve().parents[3]
PHASES = OPTIONS.replace(phases=Phases((warm_up(10, iterations=2), bounded())), evaluate_every=8, clip=None)
CASES = {"recurrent": (recurrent, OPTIONS), "implicit": (implicit, PHASES)}


def without_times(records):
    return [{name: value for name, value in r.items() if not name.endswith("_seconds")} for r in records]


def assert_same(run, model, other, other_model):
    assert without_times(run.records) == without_times(other.records)
    assert run.evaluations == other.evaluations
    names = ("ended", "steps", "stage", "accuracy", "cost")
    assert [getattr(run, name) for name in names] == [getattr(other, name) for name in names]
    for (name, value), again in zip(model.state_dict().items(), other_model.state_dict().values(), strict=True):
        assert torch.equal(value, again), name


def spoiled(make):
    """Return a model whose weights a resumed training must replace, and leave the generators elsewhere."""
    model = make()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(scope="module", params=CASES)
def whole(request, tmp_path_factory):
    """Return an uninterrupted training that kept all of its checkpoints."""
    make, options = CASES[request.param]
    folder, model = tmp_path_factory.mktemp("whole"), make()
    return make, options, folder, train(model, Parity(), options, folder=folder), model


def test_from_any_checkpoint_the_numbers_are_the_same(whole, tmp_path):
    make, options, folder, run, model = whole
    kept = checkpoints(folder)
    assert [path.name[5:13] for path in kept] == [f"{step:08d}" for step in range(4, 25, 4)]
    for path in kept[::2]:
        there = tmp_path / path.stem
        there.mkdir()
        shutil.copy(path, there)
        (there / "log.csv").write_text("what a killed run left\n1,2,")
        again = spoiled(make)
        assert_same(train(again, Parity(), options, folder=there, resume=True), again, run, model)
        lines, expected = ((place / "log.csv").read_text().splitlines() for place in (there, folder))
        assert len(lines) == len(expected)
        assert lines[0] == expected[0]


def test_bookkeeping_may_change_between_two_runs(whole, tmp_path):
    make, options, folder, run, model = whole
    shutil.copy(checkpoints(folder)[2], tmp_path)
    again = spoiled(make)
    other = train(again, Parity(), options.replace(checkpoint_every=3, log_every=2), folder=tmp_path, resume=True)
    assert other.cost == run.cost
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


CHILD = """
import os, signal
from examples.loop import train
from training.toy import OPTIONS, Parity, recurrent

saves, replace = [], os.replace

def kill_in_the_third_save(part, path):
    if str(path).endswith(".ckpt"):
        saves.append(path)
        if len(saves) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(part, path)

os.replace = kill_in_the_third_save
train(recurrent(), Parity(), OPTIONS, folder="run")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_in_the_middle_of_a_save(tmp_path):
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", CHILD]
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "run"
    assert [path.name for path in checkpoints(folder)] == ["step-00000004.ckpt", "step-00000008.ckpt"]
    assert (folder / "step-00000012.ckpt.part").exists()
    model, again = recurrent(), spoiled(recurrent)
    run = train(model, Parity(), OPTIONS)
    assert_same(train(again, Parity(), OPTIONS, folder=folder, resume=True), again, run, model)


def test_a_full_disk_in_the_middle_of_a_save(tmp_path, monkeypatch):
    calls, fsync = [], os.fsync

    def full(file):
        calls.append(file)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device; what was saved before is untouched") as error:
            train(recurrent(), Parity(), OPTIONS, folder=tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert checkpoints(tmp_path)
    model, again = recurrent(), spoiled(recurrent)
    run = train(model, Parity(), OPTIONS)
    assert_same(train(again, Parity(), OPTIONS, folder=tmp_path, resume=True), again, run, model)


def test_a_training_that_ran_out_of_time_goes_on(tmp_path, monkeypatch):
    options = OPTIONS.replace(checkpoint_every=None)
    model, again = recurrent(), recurrent()
    run = train(model, Parity(), options)
    ended = []
    for ticks in range(1, 400, 50):
        # a clock that goes on by one at every look
        clock = iter(range(10**6))
        monkeypatch.setattr("examples.loop.watch.time.process_time", lambda clock=clock: next(clock))
        limited = options.replace(time_limit=ticks, clock="cpu")
        other = train(again, Parity(), limited, folder=tmp_path, resume=True)
        ended.append(other.ended)
        again, last = (again, again) if other.ended == "steps" else (spoiled(recurrent), again)
    assert ended.count("time") > 1
    other = replace(other, evaluations=other.evaluations[-1:])
    assert_same(other, last, run, model)


def test_a_training_that_is_over_stays_as_it_is(whole, tmp_path):
    make, options, folder, run, model = whole
    before = {path.name: path.read_bytes() for path in folder.glob("log.*")}
    again = spoiled(make)
    over = train(again, Parity(), options, folder=folder, resume=True)
    assert_same(over, again, run, model)
    assert {path.name: path.read_bytes() for path in folder.glob("log.csv")} == {"log.csv": before["log.csv"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"options": OPTIONS.replace(lr=0.5, seed=3)},
            r"options.lr is 0.01 there and 0.5 here; options.seed is 0 there",
        ),
        ({"task": Parity(p=0.5)}, "task.p is missing there and 0.5 here"),
        ({"about": {"preset": "b"}}, r'about.preset is "a" there and "b" here'),
        ({"model": implicit(d_model=16)}, r"model\S+ is \[.*\] there and \[.*\] here"),
    ],
)
def test_a_checkpoint_of_another_experiment_is_refused(change, message, tmp_path):
    given = {"model": implicit(), "task": Parity(), "options": OPTIONS, "about": {"preset": "a"}}
    short = OPTIONS.replace(time_limit=1e-9)
    train(**{**given, "options": short}, folder=tmp_path)
    with pytest.raises(CheckpointError, match=message):
        train(**{**given, **change}, folder=tmp_path, resume=True)


def test_checkpoints_are_not_overwritten_by_mistake(tmp_path):
    short = OPTIONS.replace(time_limit=1e-9)
    train(recurrent(), Parity(), short, folder=tmp_path, resume=True)  # there is nothing to go on from
    with pytest.raises(ValueError, match=r"holds step-00000000.ckpt: resume that training, or choose another folder"):
        train(recurrent(), Parity(), short, folder=tmp_path)
    with pytest.raises(ValueError, match="resume=True needs a folder"):
        train(recurrent(), Parity(), short, resume=True)
