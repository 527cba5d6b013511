"""The commands on a few stories: what they print and store, that they go on, and what they refuse."""

from __future__ import annotations

import json

import pytest

from examples.catbabi import commands, experiment
from examples.catbabi.__main__ import main
from examples.catbabi.data import write_folder
from examples.catbabi.recipes import RATES_TRIED, TWINS

TINY = ["--steps", "2", "--unrolled", "1", "--max-iter", "2", "--width", "16", "--length", "60", "--rows", "2"]


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("babi"), tasks=(1, 6), stories=4, held_out=2)


@pytest.fixture(scope="module")
def trained(stories, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        # pictures are drawn in tests of their own
        patch.setattr(commands, "drawn", lambda draw: [])
        assert main(["train", "--data", str(stories), "--out", str(out), "--family", "explicit", *TINY]) == 0
    return out / "explicit-1layer-0"


def call(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_train_stores_a_result_that_evaluate_reads(stories, trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    status, out, _ = call(capsys, "evaluate", trained, "--data", stories)
    assert status == 0
    assert f"accuracy {result['test']['accuracy']:.3f}" in out
    stored = json.loads((trained / "evaluation-test.json").read_text())
    assert stored["scores"][0]["tasks"] == result["test"]["tasks"]
    assert str(stories) not in (trained / "result.json").read_text()


def test_a_finished_run_is_read_back(stories, trained, capsys, monkeypatch):
    monkeypatch.setattr(commands, "drawn", lambda draw: [])
    monkeypatch.setattr(experiment, "trained", None)
    status, out, _ = call(capsys, "train", "--data", stories, "--out", trained.parent, "--family", "explicit", *TINY)
    assert status == 0
    assert "6 yes or no" in out


def test_a_result_of_other_settings_or_stories_is_not_overwritten(stories, trained, tmp_path, capsys):
    same = ["train", "--out", trained.parent, "--family", "explicit", *TINY]
    status, _, err = call(capsys, *same, "--data", stories, "--lr", "0.1")
    assert status == 2
    assert "is the result of other settings: choose another folder with --out" in err
    other = write_folder(tmp_path, tasks=(1, 6), stories=4, held_out=2, seed=5)
    status, _, err = call(capsys, *same, "--data", other)
    assert status == 2
    assert "is the result of other stories" in err


def test_stories_with_unknown_words_are_refused(trained, tmp_path, capsys):
    folder = write_folder(tmp_path, tasks=(1, 6), stories=2, held_out=2)
    path = folder / "qa1_test.txt"
    path.write_text(path.read_text().replace("kitchen", "cellar"))
    status, _, err = call(capsys, "evaluate", trained, "--data", folder)
    assert status == 2
    assert "it lacks cellar: is it that of another corpus?" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "nowhere"], "no folder nowhere"),
        (["evaluate", "nowhere", "--data", "nowhere"], "does not exist: train first"),
        (["train", "--tasks", "17"], "tasks must be among the tasks of"),
        (["train", "--rows", "0"], "rows must be"),
        (["train", "--layers", "0"], "n_layer must be"),
        (["paper", "--rows", "0"], "rows must be"),
    ],
)
def test_bad_input_is_one_line(stories, arguments, message, tmp_path, capsys):
    given = arguments if "--data" in arguments else [*arguments, "--data", stories]
    status, _, err = call(capsys, *given)
    assert status == 2
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_an_explicit_model_has_no_budgets(stories, trained, capsys):
    status, _, err = call(capsys, "evaluate", trained, "--data", stories, "--max-iter", 4)
    assert status == 2
    assert "--max-iter must be left away" in err


@pytest.mark.slow
def test_budgets_of_an_implicit_model_are_drawn(stories, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert call(capsys, "train", "--data", stories, "--out", tmp_path, *TINY)[0] == 0
    run = tmp_path / "implicit-1layer-0"
    status, out, _ = call(capsys, "evaluate", run, "--data", stories, "--max-iter", 1, 2)
    assert status == 0
    assert "at most    2 evaluations" in out
    assert (run / "budgets.svg").exists()
    assert (run / "accuracy.svg").exists()


def test_paper_lists_its_cost(stories, capsys):
    status, out, _ = call(capsys, "paper", "--list", "--data", stories)
    assert status == 0
    assert "implicit, 1 layer: " in out
    assert "flop" in out


@pytest.mark.slow
def test_paper_takes_a_few_steps(stories, tmp_path, capsys):
    arguments = ("--steps", 1, "--try-rows", 1, "--width", 64, "--device", "cpu", "--out", tmp_path)
    status, out, _ = call(capsys, "paper", "--data", stories, *arguments)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("    ")] == [
        *("unrolled", "phantom", "all", "explicit", "all"),
    ]


@pytest.mark.slow
def test_cpu_stores_a_record_with_its_picture(stories, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    record = tmp_path / "record.json"
    arguments = ("--quick", "--workers", 1, "--tasks", 1, 6, "--out", tmp_path, "--record", record)
    status, out, _ = call(capsys, "cpu", "--data", stories, *arguments)
    assert status == 0
    assert "is ahead of explicit, 1 layer" in out
    stored = json.loads(record.read_text())
    assert [r["label"] for r in stored["results"]] == [
        *("implicit, 1 layer", "explicit, 1 layer", "explicit, 1 layer, equal steps"),
    ]
    assert record.with_suffix(".svg").exists()
    assert str(tmp_path) not in record.read_text()


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for command in ("cpu", "paper", "train", "evaluate", "search"):
        assert f"examples.catbabi {command}" in out


@pytest.mark.slow
def test_search_tries_every_rate_at_both_numbers_of_steps(stories, tmp_path, capsys):
    arguments = [
        "search",
        "--quick",
        "--data",
        stories,
        "--tasks",
        "1",
        "6",
        "--workers",
        "1",
        "--no-progress",
        "--out",
        tmp_path,
    ]
    status, _, _ = call(capsys, *arguments, "--rates", tmp_path / "untouched.json")
    assert status == 0
    found = json.loads((tmp_path / "quick/rates.json").read_text())
    assert {(row["steps"], row["lr"]) for row in found["tried"]} == {
        (steps, lr) for steps in TWINS for lr in RATES_TRIED
    }
    assert set(found["best"]) == {str(steps) for steps in TWINS}
    assert not (tmp_path / "untouched.json").exists()
