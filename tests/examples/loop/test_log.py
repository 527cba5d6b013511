"""What is written while a training runs, and what is drawn."""

from __future__ import annotations

import csv
import json
import sys
import types
from functools import partial

import pytest

from examples.loop import train
from training.toy import OPTIONS, Parity, recurrent

SHORT = OPTIONS.replace(steps=12, evaluate_every=6)


def test_csv_and_json_hold_the_records(tmp_path):
    run = train(recurrent(), Parity(), SHORT, folder=tmp_path / "run", about={"preset": "a"})
    rows = list(csv.DictReader((tmp_path / "run/log.csv").read_text().splitlines()))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == run.records
    whole = json.loads((tmp_path / "run/log.json").read_text())
    assert whole["records"] == run.records
    assert whole["evaluations"] == run.evaluations
    assert whole["result"] == run.summary()
    assert whole["experiment"]["options"] == SHORT.to_dict()
    assert whole["experiment"]["about"] == {"preset": "a"}
    assert whole["environment"]["device"] == "cpu"


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(recurrent(), Parity(), SHORT)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_the_same_numbers(tmp_path, monkeypatch):
    shown, made = {}, []

    class Writer:
        def __init__(self, folder, purge_step):
            made.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            shown[name, step] = value

        def close(self):
            made.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    run = train(recurrent(), Parity(), SHORT, folder=tmp_path, tensorboard=True)
    assert made == [(str(tmp_path / "tensorboard"), 0), "closed"]
    for record in run.records:
        assert shown["train/loss", record["step"]] == record["loss"]
    for result in run.evaluations:
        assert shown["evaluation/accuracy", result["step"]] == result["accuracy"]


def test_a_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="needs the package tensorboard"):
        train(recurrent(), Parity(), SHORT, folder=tmp_path, tensorboard=True)
    with pytest.raises(ValueError, match="tensorboard=True needs a folder, got None"):
        train(recurrent(), Parity(), SHORT, tensorboard=True)


def test_a_bar_is_drawn_where_somebody_looks(monkeypatch, capsys):
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.modules["examples.loop.train"], "DELAY", 0)
    monkeypatch.setattr(tqdm, "tqdm", partial(tqdm.tqdm, mininterval=0))
    train(recurrent(), Parity(), SHORT, name="parity", progress=True)
    drawn = capsys.readouterr()
    assert "parity" in drawn.err
    assert "accuracy=" in drawn.err
    assert drawn.out == ""
    for show in (False, None):
        train(recurrent(), Parity(), SHORT, progress=show)
        assert capsys.readouterr() == ("", "")


def test_short_trainings_draw_nothing(capsys):
    pytest.importorskip("tqdm")
    train(recurrent(), Parity(), SHORT.replace(steps=4), progress=True)
    assert "accuracy=" not in capsys.readouterr().err
