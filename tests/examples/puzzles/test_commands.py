"""The commands from end to end on tiny settings; what is done is read back, what does not fit is named."""

from __future__ import annotations

import json

import pytest
import torch

from examples.puzzles import experiment, recipes
from examples.puzzles.__main__ import main
from examples.puzzles.data import Draw, problem_named
from examples.puzzles.experiment import run, stored
from examples.puzzles.model import Shape
from examples.puzzles.recipe import Recipe, recipe
from examples.puzzles.report import board_text, breadth_table, budget_table, spread_table
from examples.puzzles.twins import KINDS, score

TINY = Draw(problem="4x4", train=6, valid=4, test=5)


def tiny(seed=0, steps=3, label="tiny", draw=TINY, **more):
    shape = Shape(width=8, heads=2, hidden=16, least=1, most=3)
    return recipe(draw, label=label, steps=steps, shape=shape, batch=4, seed=seed, **more)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    for name in ("BUDGETS", "SHOWN", "DEPTHS", "STARTS"):
        monkeypatch.setattr(experiment, name, (1, 2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run, and one with the result of another task."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BUDGETS", "SHOWN", "DEPTHS", "STARTS"):
            patch.setattr(experiment, name, (1, 2))
        run(tiny(), folder / "run", progress=False)
    (folder / "other").mkdir()
    (folder / "other/result.json").write_text(json.dumps({"recipe": {"problem": "S3"}}))
    return folder


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(recipes, "demo", lambda seed: [tiny(seed), tiny(seed, label="once")])
    monkeypatch.setattr(recipes, "six", lambda seed: tiny(seed))
    draw = Draw(problem="maze4", train=6, valid=4, test=5)
    monkeypatch.setattr(recipes, "maze", lambda side, seed: tiny(seed, draw=draw))


def a_puzzle():
    (puzzle,) = problem_named("4x4").draw({"test": 1}, 0)["test"]
    return "".join(str(cell) if cell else "." for cell in puzzle.cells)


def forbidden(*args, **kwargs):
    raise AssertionError("trained again")


def test_the_demo_prints_a_table_and_boards_and_draws(small, tmp_path, capsys):
    assert main(["demo", "--workers", "1", "--no-progress", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "K=2" in said
    assert "after 2, residual" in said
    results = json.loads((tmp_path / "0/results.json").read_text())["results"]
    assert [result["label"] for result in results] == ["tiny", "once"]
    names = {path.stem for path in (tmp_path / "0").glob("*.svg")}
    assert names in ({"accuracy", "boards", "breadth", "calibration", "difficulty"}, set())
    moving = [path.read_bytes()[:3] for path in (tmp_path / "0").glob("boards.gif")]
    assert moving == [b"GIF"] * bool(names)


@pytest.mark.parametrize("argv", [["six", "--seeds", "0", "1"], ["maze"]])
def test_the_other_sizes_run(small, tmp_path, capsys, argv):
    assert main([*argv, "--workers", "1", "--no-progress", "--out", str(tmp_path)]) == 0
    assert "exact if converged" in capsys.readouterr().out


def test_a_result_is_stored_and_read_back(tmp_path, monkeypatch):
    first = run(tiny(), tmp_path / "a", progress=False)
    monkeypatch.setattr(experiment, "trained", forbidden)
    assert run(tiny(), tmp_path / "a", progress=False) == json.loads(json.dumps(first))
    with pytest.raises(ValueError, match="result of other settings"):
        run(tiny(seed=1), tmp_path / "a", progress=False)


def test_an_interrupted_run_goes_on(tmp_path):
    whole = run(tiny(steps=6, checkpoint_every=1), tmp_path / "whole", progress=False)
    made = tiny(steps=6, checkpoint_every=1)
    cut = made.replace(loop=made.loop.replace(time_limit=1e-9))
    experiment.trained(cut, tmp_path / "cut", progress=False)
    rest = run(made, tmp_path / "cut", progress=False)
    assert rest["budgets"] == whole["budgets"]


def test_a_stored_model_is_the_trained_one(tmp_path):
    model, _ = experiment.trained(tiny(), tmp_path / "a", progress=False)
    run(tiny(), tmp_path / "a", progress=False)
    found, loaded = stored(tmp_path / "a", "4x4")
    assert found == tiny()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_puzzle_of_yours_is_solved(runs, capsys):
    assert main(["solve", str(runs / "run"), a_puzzle(), "--evaluations", "1", "3"]) == 0
    assert "after 3:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["solve", "RUN", "1234"], "puzzle must be 16 characters"),
        (["solve", "RUN", "." * 16], "it has at least two"),
        (["solve", "RUN", "11" + "." * 14], "it has no solution"),
        (["solve", "RUN", "." * 16, "--expect", "6x6"], "that of a run on 6x6, and it is on 4x4"),
        (["solve", "NONE", "." * 16], "does not exist: train first"),
        (["solve", "OTHER", "." * 16], "its result is of another task"),
        (["maze", "--side", "-4"], "puzzle must be one of"),
        (["demo", "--seed", "-1"], "seed must be"),
        (["six", "--seeds", "0", "0"], "seeds must be all different, got [0, 0]"),
        (["twins", "--seeds", "1", "1"], "seeds must be all different, got [1, 1]"),
        (["solve", "RUN", "x" * 16], "character 1 of the puzzle must be a digit from 1 to 4"),
        (["nine", "--device", "cuda:77"], "device must be one that torch finds here, got 'cuda:77'"),
        (["nine", "--device", "quantum"], "device must be one that torch finds here, got 'quantum'"),
        (["solve", "RUN", "GOOD", "--evaluations", "4", "2"], "evaluations must be rising numbers >= 1, got [4, 2]"),
        (["solve", "RUN", "GOOD", "--evaluations", "0"], "evaluations must be rising numbers >= 1, got [0]"),
        (["nine", "--train", "2", "--test", "1", "--try-steps", "0"], "steps must be a whole number >= 1"),
        (["nine", "--train", "2", "--test", "1", "--try-steps", "1", "--tflops", "0"], "tflops must be > 0"),
        (["nine", "--train", "-5"], "train must be"),
        (["nine", "--data", "NONE"], "No such file"),
        (["nine", "--batch", "0"], "rows must be"),
    ],
)
def test_bad_input_is_named(runs, tmp_path, capsys, monkeypatch, argv, message):
    if "--try-steps" in argv:
        monkeypatch.setattr(recipes, "NINE", TINY)
    argv = [a_puzzle() if word == "GOOD" else word for word in argv]
    names = {"RUN": "run", "NONE": "none", "OTHER": "other"}
    argv = [str(runs / names[word]) if word in names else word for word in argv]
    argv += [] if argv[0] == "solve" else ["--no-progress", "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_nine_is_tried_out_on_files_of_the_published_format(tmp_path, capsys, monkeypatch):
    draw = Draw(problem="4x4", train=5, valid=2, test=2)
    monkeypatch.setattr(recipes, "NINE", draw)
    argv = ["nine", "--train", "5", "--test", "2", "--try-steps", "1", "--rows", "2", "--out", str(tmp_path)]
    assert main(argv) == 0
    assert "Tflop/s" in capsys.readouterr().out
    found = json.loads((tmp_path / "tried.json").read_text())
    assert len(found["losses"]) == 1
    assert found["flop"] > 0


def test_recipes_are_plain_data():
    made = [*recipes.demo(), recipes.six(), recipes.maze(), recipes.nine()]
    assert [Recipe.from_dict(json.loads(json.dumps(one.to_dict()))) for one in made] == made
    with pytest.raises(ValueError, match="split must be one of train, valid, test"):
        tiny().replace(split="rest")


def test_twins_have_as_many_parameters():
    from examples.puzzles.model import PuzzleModel

    problem = problem_named("4x4")
    counts = [sum(p.numel() for p in PuzzleModel(problem, shape).parameters()) for shape, _ in KINDS.values()]
    assert max(counts) / min(counts) < 1.1


def test_the_best_rate_is_that_of_the_best_number_of_evaluations():
    rows = [{"exact": 0.1, "cells": 0.5}, {"exact": 0.3, "cells": 0.4}, {"exact": 0.3, "cells": 0.6}]
    assert score({"budgets": rows}) == (0.3, 0.6)


def test_boards_are_written():
    assert board_text("4x4", [1, 0, 0, 0] * 4).splitlines()[0] == "1 . . ."
    assert board_text("4x4", [0] * 16, [3] * 16).splitlines()[0] == "4 4 4 4"
    assert board_text("maze3", [2, 1, 1, 0, 0, 1, 1, 3, 1], [1, 1, 1, 0, 0, 1, 0, 1, 1]).splitlines()[0] == "S o o"


@pytest.mark.slow
def test_a_short_training_solves_puzzles_that_it_has_not_seen(tmp_path, monkeypatch):
    draw = Draw(problem="4x4", train=25, valid=50, test=100)
    monkeypatch.setattr(experiment, "BUDGETS", (1, 16))
    result = run(recipe(draw, label="short", steps=800), tmp_path / "a", progress=False)
    found = {row["evaluations"]: row["exact"] for row in result["budgets"]}
    assert found[1] < 0.1
    assert found[16] > 0.8
    assert "0." in budget_table([result])
    assert "0." in spread_table([result])
    assert "vote" in breadth_table(result)
