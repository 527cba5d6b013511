"""The commands: what they print, store and draw, and how they refuse."""

from __future__ import annotations

import contextlib
import copy
import io
import json

import pytest

from examples.loop.train import TrainingError
from examples.state_tracking import commands, demo, full, page, plots, recipes, report, search, small
from examples.state_tracking.__main__ import main


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A demo of a few steps and small tests: its data, what it printed, its folder."""
    folder, printed = tmp_path_factory.mktemp("demo"), io.StringIO()
    loop, test = recipes.LoopOptions, recipes.Test
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(recipes, "DEMO", {"S3": 6, "Z2": 6})
        patch.setattr(recipes, "TWIN_STEPS", {"S3": {1: 2, 2: 2}, "Z2": {1: 2, 2: 2}})
        patch.setattr(recipes, "Test", lambda **given: test(**{**given, "rows": 4, "batch": 4, "max_iter": 4}))
        # six steps have no room for fifty of warm-up
        patch.setattr(recipes, "LoopOptions", lambda **given: loop(**{**given, "warm_up": 1}))
        assert main(["demo", "--workers", "1", "--no-progress", "--out", str(folder / "demo")]) == 0
    return json.loads((folder / "demo/S3-0/result.json").read_text()), printed.getvalue(), folder


@pytest.fixture
def data(result):
    """The data of that demo, to be changed."""
    return copy.deepcopy(result[0])


def test_the_demo_prints_stores_and_draws(result):
    data, printed, folder = result
    assert [r["label"] for r in data["results"]] == ["implicit, 1 layer", "explicit, 1 layer", "explicit, 2 layers"]
    assert "accuracy of the last token, trained on up to 16 tokens, seed 0 (guessing: 0.167)" in printed
    for length in (2, 16, 64, 256):
        assert f"L={length}" in printed
    assert "ahead of the best explicit model" in printed
    pytest.importorskip("matplotlib")
    assert (folder / "demo/S3-0/accuracy.svg").stat().st_size > 1000
    assert "accuracy.png" in printed


def test_the_demo_says_when_a_baseline_had_less_time(data):
    for r, seconds in zip(data["results"], (2.0, 3.0, 1.0), strict=True):
        r["training"]["seconds"]["cpu"] = seconds
    assert "Less time than the implicit layer had: explicit, 2 layers" in demo.describe(data)
    data["results"][2]["training"]["seconds"]["cpu"] = 2.5
    assert "Less time" not in demo.describe(data)


def test_the_gap_is_to_the_best_of_the_others(data):
    for r, last in zip(data["results"], (1.0, 0.2, 0.45), strict=True):
        next(t for t in r["tests"] if t["length"] == 64)["last"] = last
    assert report.gap(data["results"], 64) == pytest.approx(0.55)


def test_the_page_is_drawn_from_records_and_again_the_same(result):
    _, _, folder = result
    docs = folder / "docs"
    docs.mkdir()
    text = (page.DOCS / "results.md").read_text()
    (docs / "results.md").write_text(text)
    written = page.copy_records(folder, docs)
    assert [path.name for path in written] == ["demo-S3-0.json"]
    drawn = page.redraw(docs).read_text()
    assert "| explicit, 2 layers |" in drawn
    assert "No record yet: `python -m examples.state_tracking demo --group Z2`" in drawn
    assert page.redraw(docs).read_text() == drawn
    assert [path.name for path in page.illustrate(docs)] == ["state_tracking.svg"]
    (docs / "results.md").write_text("nothing")
    with pytest.raises(ValueError, match="no block 'demo-S3'"):
        page.redraw(docs)


def test_the_committed_page_is_fresh():
    text = (page.DOCS / "results.md").read_text()
    for name, block in page.blocks().items():
        assert f"<!-- begin {name} -->\n{block}\n<!-- end {name} -->" in text, "run: examples.state_tracking page"


def test_long_lists_are_left_out_of_records():
    data = {"table": [{"accuracy": [1.0] * 300, "token_steps": [2.0] * 256, "last": 1.0}]}
    assert page._slim(data) == {"table": [{"token_steps": [2.0] * 256, "last": 1.0}]}


def test_nothing_to_copy_is_an_error(tmp_path, capsys):
    assert main(["page", "--runs", str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_a_spread_counts_seeds_that_learnt():
    stages = {"loop": {"curriculum": {"stages": [{"length": 4}]}}}
    results = [
        {"label": "m", "tests": [{"length": 4, "last": last}], "recipe": stages,
         "training": {"steps": 3, "seconds": {"cpu": 1.0}}}
        for last in (1.0, 0.5)
    ]  # fmt: skip
    line = report.spread_table(results).splitlines()[1]
    assert "1 of 2" in line
    assert "0.750 (0.500-1.000)" in line


@pytest.mark.slow
def test_train_and_evaluate(tmp_path, capsys):
    out = ["--out", str(tmp_path), "--no-progress"]
    settings = ["--problem", "Z2", "--steps", "3", "--width", "32", "--length", "4", "--tokens", "32"]
    assert main(["train", *settings, *out]) == 0
    (folder,) = tmp_path.iterdir()
    assert "implicit mamba2, 1 layer" in capsys.readouterr().out
    arguments = ["evaluate", str(folder), "--lengths", "4", "8", "--p", "0", "0.5", "--rows", "2"]
    assert main([*arguments, "--no-progress"]) == 0
    assert "sequential" in capsys.readouterr().out
    data = json.loads((folder / "evaluation.json").read_text())
    assert {(t["mode"]["name"], t["length"], t["p"]) for t in data["table"]} == {
        (mode, length, p) for mode in ("sequential", "chunked", "simultaneous") for length in (4, 8) for p in (0, 0.5)
    }
    assert all(t["agreement"] == 1.0 for t in data["table"] if t["mode"]["name"] == "sequential")


@pytest.mark.slow
def test_an_explicit_transformer_is_trained_and_evaluated(tmp_path, capsys):
    settings = ["--problem", "Z2", "--family", "explicit", "--mixer", "attention", "--layers", "2", "--steps", "2"]
    settings += ["--sliding-window", "3"]
    assert main(["train", *settings, "--length", "4", "--tokens", "32", "--out", str(tmp_path), "--no-progress"]) == 0
    (folder,) = tmp_path.iterdir()
    assert main(["evaluate", str(folder), "--lengths", "4", "--p", "0", "--rows", "2", "--no-progress"]) == 0
    assert "L=4 p=0: last" in capsys.readouterr().out


def test_a_window_needs_attention(tmp_path, capsys):
    assert main(["train", "--sliding-window", "2", "--out", str(tmp_path)]) == 2
    assert "--sliding-window must be left away for --mixer mamba2, got 2" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_an_error(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "train first" in capsys.readouterr().err


def test_an_unknown_problem_is_an_error(tmp_path, capsys):
    assert main(["train", "--problem", "B5", "--out", str(tmp_path)]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_paper_lists_its_recipes_and_costs(capsys):
    assert main(["paper", "--list"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("A5xM") == 6
    assert "flop" in printed


@pytest.mark.slow
def test_paper_takes_steps_in_each_phase(tmp_path, capsys):
    arguments = ["paper", "--only", "3", "--steps", "1", "--rows", "1", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "unrolled" in (printed := capsys.readouterr().out)
    assert "phantom" in printed
    (stored,) = (tmp_path / "tried").iterdir()
    assert [phase["phase"] for phase in json.loads(stored.read_text())["phases"]] == ["unrolled", "phantom"]


@pytest.mark.slow
def test_the_search_keeps_all_that_was_tried_and_names_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "LEARNING_RATES", (1e-3, 1e-2))
    loop, test = recipes.LoopOptions, recipes.Test
    monkeypatch.setattr(recipes, "DEMO", {"Z2": 3})
    monkeypatch.setattr(recipes, "TWIN_STEPS", {"S3": {1: 2, 2: 2}, "Z2": {1: 2, 2: 2}})
    monkeypatch.setattr(recipes, "Test", lambda **given: test(**{**given, "rows": 64, "batch": 64}))
    monkeypatch.setattr(recipes, "LoopOptions", lambda **given: loop(**given, warm_up=1))
    found = search.search(tmp_path, groups=("Z2",), workers=1, progress=False)
    assert len(found["tried"]) == 2 * 2 * 2
    for layers in ("1", "2"):
        means = [row["mean"] for row in found["tried"] if str(row["layers"]) == layers]
        assert found["best"]["Z2"][layers]["mean"] == max(means)


@pytest.mark.slow
def test_the_modes_are_compared_and_drawn(tmp_path):
    data = small.run_part("modes", tmp_path, workers=1, quick=True, progress=False)
    assert {t["length"] for t in data["table"]} == {16, 32}
    assert len(data["table"]) == 2 * len(small.MODES)
    assert [share["p"] for share in data["shares"]] == [0.0, 0.5, 0.9]
    pytest.importorskip("matplotlib")
    assert len(commands.small_pictures("modes", data, tmp_path)) == 10


@pytest.mark.slow
def test_full_compares_at_equal_steps_and_equal_time(tmp_path, capsys):
    assert main(["full", "--quick", "--groups", "Z2", "--workers", "1", "--no-progress", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "quick/Z2.json").read_text())
    assert len(data["search"]) == 4 * len(full.RATES)
    seeds = {kind: {t["seed"] for r in data[kind] for t in r["recipe"]["tests"]} for kind in ("search", "equal_time")}
    assert seeds == {"search": {0}, "equal_time": {1}}
    steps = {r["training"]["steps"] for r in data["equal_steps"]}
    assert steps == {4}
    assert {t["length"] for r in data["equal_time"] for t in r["tests"]} == set(recipes.LENGTHS)
    printed = capsys.readouterr().out
    assert "equal time, last10" in printed
    assert "lr=0.0003" in printed


def tried(lr, mean, label="a"):
    tests = [{"length": 2, "mean": 1.0}, {"length": full.TRAINED, "mean": mean}]
    return {"label": label, "recipe": {"loop": {"lr": lr}}, "tests": tests}


@pytest.mark.parametrize(
    ("means", "best"),
    [((0.1, 0.5, 0.9), 0.1), ((0.9, 0.5, 0.1), 0.001), ((0.2, 1.0, 1.0), 0.01), ((1.0, 1.0, 1.0), 0.01)],
)
def test_the_best_rate_is_the_middle_one_of_equals(means, best):
    runs = [tried(lr, mean) for lr, mean in zip((0.001, 0.01, 0.1), means, strict=True)]
    assert full.best_run(runs)["recipe"]["loop"]["lr"] == best


def test_a_training_that_breaks_is_the_worst_of_a_search(monkeypatch, tmp_path):
    def breaks(recipe, folder, **how):
        raise TrainingError("grad_norm is nan at step 3")

    monkeypatch.setattr(full, "run", breaks)
    broken = full.attempt(recipes.demo_recipes("S3")[0], tmp_path, progress=False)
    assert broken["failed"] == "grad_norm is nan at step 3"
    other = tried(0.001, 0.0, broken["label"])
    assert full.best_run([other, broken]) is other
    assert report.rate_table([other, broken], length=full.TRAINED).split()[-1] == "broke"


def test_the_table_of_rates_has_a_line_per_model():
    runs = [tried(lr, lr * 2, label) for label in ("a", "b") for lr in (0.01, 0.1)]
    lines = report.rate_table(runs, length=full.TRAINED).splitlines()
    assert [line.split() for line in lines] == [
        ["model", "lr=0.01", "lr=0.1"], ["a", "0.020", "0.200"], ["b", "0.020", "0.200"]]  # fmt: skip


def test_pictures_are_equal_byte_for_byte(tmp_path):
    pytest.importorskip("matplotlib")
    data = {"length": 3, "rtol": 0.05, "residual": [[0.0, 0.1, 0.2], [-3.0, -1.0, 0.0]], "settled": [0, 1]}
    first = [path.read_bytes() for path in plots.frontier(data, tmp_path / "a")]
    again = [path.read_bytes() for path in plots.frontier(data, tmp_path / "a")]
    assert first == again


@pytest.mark.slow
def test_every_kind_of_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    table = [{"length": 2, "mode": {"name": "chunked", "size": 2}, "token_steps": [1.0, 2.0]}]
    assert all(path.exists() for path in plots.steps_by_position(table, tmp_path / "steps"))
    shares = [{"length": 2, "p": p, "by_token": {"hard": {"accuracy": None, "token_steps": None},
               "easy": {"accuracy": 1.0, "token_steps": 3.0}}} for p in (0.5, 1.0)]  # fmt: skip
    assert all(path.exists() for path in plots.easy_and_hard(shares, tmp_path / "shares"))
    budgets = {"4": [{"budget": 1, "last": 0.1, "mean": 0.2}, {"budget": 8, "last": 1.0, "mean": 1.0}]}
    assert all(path.exists() for path in plots.budgets(budgets, tmp_path / "budgets"))
