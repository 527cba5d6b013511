"""A training that is stopped goes on to the bit; one that cannot go on says why and loses nothing."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch

from deqlm.models import RECIPES
from deqlm.training import CheckpointError
from examples.loop.train import TrainingError
from examples.pretrain.settings import CONFIGS, Settings, read_settings
from examples.pretrain.train import main
from training.pretraining import settings, stopped_at, text, training, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed:UserWarning", "ignore:.*:FutureWarning")


def lines(folder):
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("family", ["llama3", pytest.param("mamba2", marks=pytest.mark.slow)])
def test_a_stopped_training_goes_on_to_the_bit(tmp_path, family):
    given = settings(family=family, model={"dropout": 0.1}, checkpoint_every=2)
    (tmp_path / "whole").mkdir()
    whole = training(tmp_path / "whole", given)
    whole.run()
    (tmp_path / "cut").mkdir()
    given_cut = given.replace(source=str(text(tmp_path / "whole")))
    stopped_at(training(tmp_path / "cut", given_cut), 3)
    again = training(tmp_path / "cut", given_cut)
    assert again.step == 2
    again.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
    names = ("step", "kind", "loss", "grad_norm", "evaluations", "phase")
    told = [[{name: line.get(name) for name in names} for line in lines(tmp_path / run)] for run in ("whole", "cut")]
    assert told[0] == told[1]
    assert [line["phase"] for line in told[0] if line["kind"] == "train"] == [0, 0, 0, 1, 1, 1]


def test_passes_add_up_to_one_step(tmp_path):
    made = [training(tmp_path, settings(rows=rows).replace(source=str(text(tmp_path)))) for rows in (4, 2, 1)]
    for each in made:
        # every row stops by itself, so that the cut of a batch does not matter
        each.phases = None
        each.model.solve = each.model.solve.replace(stop={"max_iter": 4, "rtol": 0.0})
        each._step()
    for other in made[1:]:
        for a, b in zip(weights(made[0]), weights(other), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_another_experiment_is_refused_with_the_difference(tmp_path):
    stopped_at(training(tmp_path, settings(checkpoint_every=1)), 1)
    with pytest.raises(CheckpointError, match=r"settings\.recipe\.lr is 0\.001 there and 0\.01 here"):
        training(tmp_path, settings(recipe={"lr": 0.01}))
    other = tmp_path / "other.txt"
    other.write_text("something else. " * 200)
    with pytest.raises(CheckpointError, match=r"data\.sha256 is .* there and"):
        training(tmp_path, settings(source=str(other)))
    # where and how often it writes may change
    assert training(tmp_path, settings(keep=1, log_every=2)).step == 1


def test_a_loss_that_is_not_finite_stops_and_saves(tmp_path):
    made = stopped_at(training(tmp_path, settings(checkpoint_every=2)), 3)
    before = [w.clone() for w in weights(made)]

    def broken(*args, **kwargs):
        out = made.model(*args, **kwargs)
        return SimpleNamespace(loss=out.loss * torch.nan, solution=out.solution)

    made.called = broken
    with pytest.raises(TrainingError, match=r"loss is nan at step 3, with the rate .*step-00000003"):
        made._step()
    again = training(tmp_path, settings(checkpoint_every=2))
    assert again.step == 3
    assert all(torch.equal(a, b) for a, b in zip(before, weights(again), strict=True))


def test_a_guard_brings_the_best_weights_back(tmp_path):
    made = stopped_at(training(tmp_path, settings(guard={"window": 1}, checkpoint_every=5)), 2)
    best = [w.clone() for w in weights(made)]
    plain = made.called

    def broken(*args, **kwargs):
        out = plain(*args, **kwargs)
        return SimpleNamespace(loss=out.loss * torch.nan, solution=out.solution)

    made.called = broken
    made._step()
    (fall,) = made.watchman.falls
    assert fall.best_step in (1, 2)
    if fall.best_step == 2:
        assert all(torch.equal(a, b) for a, b in zip(best, weights(made), strict=True))
    made.called = plain
    assert made._step()["lr"] == pytest.approx(made.schedule.at(3) * made.watchman.guard.factor)
    stopped_at(made, 5)
    assert training(tmp_path, settings(guard={"window": 1}, checkpoint_every=5)).watchman.falls == [fall]


def test_an_explicit_model_has_no_phases(tmp_path):
    made = training(tmp_path, settings(2, model={"implicit": False, "best_f": False}, phases=[]))
    assert math.isfinite(made.run()["loss"])
    assert {line["phase"] for line in lines(tmp_path) if line["kind"] == "train"} == {0}


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    import torch.distributed.checkpoint as dcp

    made = stopped_at(training(tmp_path, settings(checkpoint_every=2)), 2)

    class Full(dcp.FileSystemWriter):
        def write_data(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(dcp, "FileSystemWriter", Full)
    with pytest.raises(OSError, match=r"(?s)could not write .*No space left.*last checkpoint is .*step-00000002"):
        stopped_at(made, 4)
    monkeypatch.undo()
    assert training(tmp_path, settings(checkpoint_every=2)).step == 2
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_damaged_checkpoint_is_told(tmp_path):
    stopped_at(training(tmp_path, settings(checkpoint_every=1)), 1)
    for file in (tmp_path / "run/step-00000001").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="is damaged"):
        training(tmp_path, settings(checkpoint_every=1))


def test_the_result_is_a_model_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    import deqlm.hf  # noqa: F401

    made = training(tmp_path, settings(steps=2))
    made.run()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    ids = torch.randint(257, (1, 5))
    how = {"stop": {"max_iter": 5, "rtol": 0.0}}
    with torch.no_grad():
        assert torch.equal(loaded.lm(ids, **how).logits, made.model.eval()(ids, **how).logits)


@pytest.mark.slow
def test_precision_and_streams_run(tmp_path):
    half = training(tmp_path, settings(steps=2, precision="bfloat16", recompute=True))
    assert math.isfinite(half.run()["loss"])
    (tmp_path / "b").mkdir()
    given = settings(stream=True, checkpoint_every=2)
    whole = training(tmp_path / "b", given)
    whole.run()
    (tmp_path / "c").mkdir()
    given = given.replace(source=whole.settings.source)
    stopped_at(training(tmp_path / "c", given), 3)
    again = training(tmp_path / "c", given)
    again.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))


def test_there_is_a_config_for_every_size_of_both_families():
    assert {path.stem for path in CONFIGS.glob("*.json")} == {"cpu-demo", *RECIPES}
    assert all(read_settings(name).recipe == RECIPES[name] for name in RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu-demo", *RECIPES])
def test_every_config_starts_at_reduced_width(name, tmp_path):
    given = read_settings(name)
    small = settings(steps=3, family="llama3" if name.startswith("llama") else "mamba2")
    like = small.recipe.model
    shape = {"vocab_size": 257, "pad_vocab": 1, "d_model": 16, "n_layer": 1, "d_hidden": like.d_hidden}
    model = given.recipe.model.replace(mixer=like.mixer, **shape)
    sizes = {"length": 16, "batch_tokens": 64, "tokens": 192, "warm_up": 1}
    recipe = given.recipe.replace(model=model, **sizes)
    changes = {"source": None, "tokenizer": "bytes", "stream": False, "workers": 0, "held_out": 64, "rows": 2}
    made = training(tmp_path, given.replace(recipe=recipe, evaluate_rows=2, **changes))
    assert math.isfinite(made.run()["loss"])
    assert made.step == 3


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    for arguments, said in [
        (["--config", "cpu-dem"], "unknown config 'cpu-dem': did you mean 'cpu-demo'"),
        (["--config", "cpu-demo", "--set", "rows=3"], "rows must be so many that rows x 1 processes divide the 16"),
        (["--config", "cpu-demo", "--set", "rows"], "--set must be NAME=VALUE"),
        (["--config", "cpu-demo", "--set", "raws=3"], "raws"),
        (["--config", "cpu-demo", "--set", "source=/nowhere.txt"], "/nowhere.txt cannot be read"),
        (["--config", str(tmp_path / "x.json")], "cannot be read"),
    ]:
        assert main([*arguments, "--out", str(tmp_path / "o"), "--data", str(tmp_path / "d"), "--device", "cpu"]) == 1
        error = capsys.readouterr().err
        assert re.match(r"error: .+\n\Z", error)
        assert said in error


def test_settings_that_break_a_rule_are_refused():
    with pytest.raises(ValueError, match="workers must be 0 without stream"):
        Settings(recipe="mamba2-130m", workers=2)
    with pytest.raises(ValueError, match="shard must be 'model' without parallel='fsdp'"):
        Settings(recipe="mamba2-130m", shard="blocks")
    with pytest.raises(KeyError, match="unknown recipe"):
        Settings(recipe="mamba3")
