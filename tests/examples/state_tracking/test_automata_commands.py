"""The commands of automata, collapse, schedule and groups: what they print, store and draw, and how they refuse."""

from __future__ import annotations

import json

import pytest
import torch

from deqlm.training import Curriculum, Stage
from examples.loop import Guard, LoopOptions, TrainingError
from examples.state_tracking import commands, generated, page, report, schedule
from examples.state_tracking.__main__ import main
from examples.state_tracking.automata import collapse, experiment, sessions, table
from examples.state_tracking.automata.recipe import (
    MODELS,
    OURS,
    AutomatonRecipe,
    ReferenceOptions,
    baseline,
    implicit,
)
from examples.state_tracking.automata.task import Automaton
from examples.state_tracking.automata.tasks import CONTRACTS, TABLE, contract
from examples.state_tracking.recipe import Test


@pytest.fixture
def rates(tmp_path, monkeypatch):
    """Give every model a rate, as a search would."""
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"best": {name: {"lr": 0.01, "curriculum": True} for name in MODELS}, "tried": []}))
    monkeypatch.setattr(table, "RATES", path)
    table._stored.cache_clear()
    yield
    table._stored.cache_clear()


def test_the_table_prints_its_contracts_and_the_published_means(tmp_path, capsys, rates):
    given = ["automata", "--quick", "--seeds", "2", "--workers", "1", "--no-progress", "--out", str(tmp_path)]
    given += ["--tasks", "parity", "modular_arithmetic", "--models", "LSTM"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    for name in ("parity", "modular_arithmetic"):
        assert contract(name).line() in printed
    assert "*PD-SSM, published*" in printed
    data = json.loads((tmp_path / "quick/automata.json").read_text())
    assert [(r["label"], r["contract"]["name"], r["seed"]) for r in data["results"]] == [
        (label, task, seed) for label in (OURS, "LSTM") for task in ("parity", "modular_arithmetic") for seed in (0, 1)
    ]
    assert all(r["contract"]["revision"] == contract(r["contract"]["name"]).revision for r in data["results"])
    assert main(given) == 0, "finished runs are read back"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--tasks", "party"], "unknown task 'party'"),
        (["--models", "LTSM"], "unknown model 'LTSM': did you mean 'LSTM'"),
        (["--tasks", "parity", "parity"], "tasks must be all different, got ['parity', 'parity']"),
        (["--models", "LSTM", "LSTM"], "models must be all different"),
        (["--seeds", "0"], "seeds must be a whole number >= 1, got 0"),
        (["--search"], "models must be some of LSTM, PD-SSM"),
        (["--search", "--models", "GRU"], "unknown model 'GRU'"),
    ],
)
def test_what_the_table_does_not_know_is_named_before_anything_runs(given, message, tmp_path, capsys):
    assert main(["automata", *given, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_rate_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "RATES", tmp_path / "none.json")
    assert main(["automata", "--models", "LSTM", "--out", str(tmp_path / "out")]) == 2
    assert "run automata --search --models 'LSTM' first" in capsys.readouterr().err


def tiny(task="parity", **changes):
    stages = (Stage(length=4, rows=8),)
    loop = LoopOptions(steps=2, curriculum=Curriculum(stages), warm_up=1, log_every=1, checkpoint_every=1)
    model = ReferenceOptions(kind="lstm", rows=contract(task).rows, width=8)
    return AutomatonRecipe(**{"label": "tiny", "task": task, "model": model, "loop": loop, "lengths": (40,), **changes})


def test_a_checkpoint_of_another_task_is_refused(tmp_path):
    experiment.run(tiny(), tmp_path)
    (tmp_path / "result.json").unlink()
    with pytest.raises(Exception, match=r"contract\.name is \"?parity\"? there and \"?even_pairs\"? here"):
        experiment.run(tiny("even_pairs"), tmp_path)


def test_the_result_of_another_recipe_is_refused(tmp_path):
    found = experiment.run(tiny(), tmp_path)
    assert found == experiment.run(tiny(), tmp_path)
    with pytest.raises(ValueError, match="is the result of other settings"):
        experiment.run(tiny(rows=3), tmp_path)


def test_a_training_that_breaks_is_shown(tmp_path, monkeypatch):
    def broken(*given, **how):
        raise TrainingError("loss is nan at step 3")

    monkeypatch.setattr(experiment, "train", broken)
    found = experiment.run(tiny(), tmp_path)
    assert found["failed"] == "loss is nan at step 3"
    assert found["mean"] is None
    assert "broke" in table._cell([found])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 16}, "chunk must be None for a model that solves nothing, got 16"),
        ({"chunk": 11}, "chunk must be a whole number >= 12, got 11"),
        ({"lengths": (1,)}, "tested length must be a whole number >= 2, got 1"),
        ({"mixed": 2.0}, r"mixed must be in \[0, 1\], got 2.0"),
        ({"split": "train"}, "split must be 'valid' or 'test', got 'train'"),
        ({"task": "modular_arithmetic"}, "rows of the model must be >= 9"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tiny().replace(**change)
    short = LoopOptions(steps=2, warm_up=1, curriculum=Curriculum((Stage(length=1, rows=8),)))
    with pytest.raises(ValueError, match="length of a stage must be a whole number >= 2, got 1"):
        tiny(loop=short)
    with pytest.raises(KeyError, match="unknown reference 'gru'"):
        ReferenceOptions(kind="gru", rows=2)


@pytest.mark.parametrize("task", CONTRACTS)
def test_recipes_survive_json_and_stay_within_the_protocol(task):
    others = [baseline(label, task, lr=0.01, seconds=1, curriculum=c) for label in MODELS for c in (True, False)]
    for recipe in (implicit(task, 3), *others):
        assert AutomatonRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
        lengths = [stage.length for stage in recipe.loop.curriculum.stages]
        low, high = (recipe.contract.tokens(n) for n in recipe.contract.trained)
        assert min(lengths) >= low
        assert max(lengths) == high
        assert recipe.lengths is not None
        assert (recipe.lengths[0], recipe.lengths[-1], len(recipe.lengths)) == (40, 256, 25)


def test_steps_of_mixed_length_stay_within_the_stage():
    task, stage = Automaton(contract("parity"), mixed=1.0), Stage(length=40, rows=16)
    shapes = {tuple(task.batch(0, step, stage).ids.shape) for step in range(800)}
    assert {length for _, length in shapes} == set(range(3, 41))
    assert all(rows * length <= 640 and rows <= 64 for rows, length in shapes)
    again = [task.batch(5, 7, stage).ids for _ in range(2)]
    assert torch.equal(*again)


def test_traces_stand_beside_an_explicit_twin_and_an_lstm_at_rates_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sessions, "TRIED", (1e-3, 1e-2))
    given = ["traces", "--quick", "--workers", "1", "--no-progress", "--out", str(tmp_path)]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert contract("repl_traces").line() in printed
    assert "L=42" in printed
    data = json.loads((tmp_path / "quick/traces.json").read_text())
    assert [r["label"] for r in data["results"]] == [OURS, *sessions.BESIDE]
    assert all(r["recipe"]["split"] == "test" for r in data["results"])
    assert {(row["label"], row["lr"]) for row in data["search"]} == {
        (m, r) for m in sessions.BESIDE for r in (0.001, 0.01)
    }
    best = sessions.best_rate([row for row in data["search"] if row["label"] == "LSTM"])
    assert data["results"][2]["recipe"]["loop"]["lr"] == best
    assert sessions.best_rate([{"mean": 0.5, "lr": 0.1}, {"mean": 0.5, "lr": 0.01}, {"mean": None, "lr": 1.0}]) == 0.01
    assert main(["traces", "--seeds", "0", "--out", str(tmp_path)]) == 2
    assert "seeds must be a whole number >= 1, got 0" in capsys.readouterr().err


def test_the_collapse_is_told_and_drawn(tmp_path, monkeypatch, capsys):
    real = collapse.collapsing
    monkeypatch.setattr(collapse, "collapsing", lambda **given: real(**given).replace(lengths=(40,), rows=2))
    assert main(["collapse", "--steps", "22", "--workers", "1", "--no-progress", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"{label}: accuracy" in printed for label in collapse.LABELS)
    data = json.loads((tmp_path / "collapse.json").read_text())
    assert [len(r["curve"]["step"]) for r in data["results"]] == [3, 3]
    assert all(c is not None for c in data["results"][0]["curve"]["converged"])


@pytest.mark.slow
def test_the_guard_keeps_what_the_bare_training_loses(tmp_path):
    data = collapse.compare(tmp_path, workers=1, progress=False)
    bare, guarded = data["results"]
    assert bare["training"]["accuracy"] < 0.7
    assert max(bare["curve"]["accuracy"]) > 0.99
    assert guarded["training"]["falls"]
    assert guarded["training"]["accuracy"] > 0.99


def test_every_schedule_is_compared_with_token_by_token(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "demo_recipes", lambda group: [tiny_words(group)])
    monkeypatch.setattr(schedule, "WHOLE", 32)
    given = ["schedule", "--lengths", "32", "48", "--no-progress", "--out", str(tmp_path)]
    monkeypatch.setattr(commands, "schedules", lambda *a, **k: schedule.schedules(*a, **k, whole_to=32))
    assert main(given) == 0
    lines = json.loads((tmp_path / "schedule.json").read_text())["table"]
    assert [(t["length"], t["mode"]["name"]) for t in lines] == [
        (32, "sequential"), (32, "chunked"), (32, "chunked"), (32, "simultaneous"),
        (48, "sequential"), (48, "chunked"), (48, "chunked"),
    ]  # fmt: skip
    assert "same answer as token by token" in capsys.readouterr().out
    assert main(["schedule", "--lengths", "1", "--out", str(tmp_path)]) == 2
    assert "length must be a whole number >= 2, got 1" in capsys.readouterr().err


def tiny_words(group):
    from examples.state_tracking.recipes import general
    from examples.state_tracking.recipes import implicit as layer

    recipe = general(group, model=layer(group), label="implicit, 1 layer", steps=2, length=4, warm_up=1)
    return recipe.replace(tests=(Test(length=4, rows=2, batch=2, max_iter=4),))


def test_groups_of_generators_are_trained_and_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generated, "recipe_of", lambda name, *, seed, steps: tiny_words(name).with_seed(seed))
    assert main(["groups", "--problems", "S3:2", "--workers", "1", "--no-progress", "--out", str(tmp_path)]) == 0
    assert "S3:2" in capsys.readouterr().out
    data = json.loads((tmp_path / "groups.json").read_text())
    assert data["contract"]["fidelity"] == "reconstructed"
    assert data["results"][0]["problem"] == "S3:2"


def test_a_group_without_generators_is_named(tmp_path, capsys):
    for name, message in (("S5", "must have a number of generators"), ("S5:500", "in 1..119, got 500")):
        assert main(["groups", "--problems", name, "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    assert main(["groups", "--problems", "S5:4", "S5:4", "--out", str(tmp_path)]) == 2
    assert "problems must be all different, got ['S5:4', 'S5:4']" in capsys.readouterr().err
    recipe = generated.recipe_of("S5:32", seed=2)
    assert (recipe.length, recipe.loop.seed, recipe.problem) == (40, 2, "S5:32")
    assert [t.length for t in recipe.tests] == [40, 64, 128, 256]


def test_the_mean_of_the_table_needs_all_four():
    def result(task, mean):
        return {"label": OURS, "contract": {"name": task}, "seed": 0, "mean": mean}

    data = {"published": {}, "contracts": [contract(t).to_dict() for t in TABLE]}
    whole = table.describe({**data, "results": [result(t, 0.5 + i / 10) for i, t in enumerate(TABLE)]})
    assert " 65.0 " in whole
    three = [result(t, mean) for t, mean in zip(TABLE, (0.5, 0.6, 0.8), strict=False)]
    assert "63.3" not in table.describe({**data, "results": three})


def test_records_of_the_commands_are_drawn_on_the_page():
    assert set(page.ALONE) <= set(page.blocks())
    assert Guard().most == 3
    assert report.table(["a"], [["b"]]) == "a\nb"
