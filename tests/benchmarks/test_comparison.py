"""The benchmark behind the pages: they and their plots are drawn from the record, and the numbers in it are true."""

from __future__ import annotations

import doctest
import importlib
import json
import math

import pytest
import torch

from benchmarks.comparison import causes
from benchmarks.comparison.__main__ import main
from benchmarks.comparison.adjoint import adjoint_maps, measure_adjoint
from benchmarks.comparison.contenders import DEFAULT, PEERS, Contender, ours, outcome_of
from benchmarks.comparison.growth import measure_growth
from benchmarks.comparison.maps import FORMULAS, HARD, SpeedMap, bad_rows, speed_maps, true_residual
from benchmarks.comparison.page import SECTIONS, blocks, write_page
from benchmarks.comparison.quality import measure_quality
from benchmarks.comparison.quality_maps import QualityProblem, all_problems
from benchmarks.comparison.run import COUNTS, Extent, _double_maps, measure
from benchmarks.comparison.speed import fitted, measure_speed
from benchmarks.comparison.timing import interleaved
from benchmarks.comparison.verdicts import losses, verdicts
from deqlm_solvers import Anderson, Broyden, FixedPoint

TINY = Extent(rounds=1, most=1, quality_solvers=("anderson", "fixed_point"), budgets=(5, 10))


def tiny_map(max_iter=200):
    w = torch.tensor([[0.3, 0.2], [-0.2, 0.5]])
    return SpeedMap("tiny", HARD, "linear", (w,), (torch.ones(3, 2),), torch.zeros(3, 2), max_iter)


def entry(solver, ms, solved=True):
    return {
        "solver": solver,
        "ms": ms,
        "solved": solved,
        "evaluations": 10,
        "residual": 1e-6,
        "message": "",
        "picked": None,
    }


def speed_record(default_ms, peer_ms, group=HARD):
    entries = [entry(DEFAULT, default_ms), entry(PEERS[0], 9e9, solved=False), entry(PEERS[1], peer_ms)]
    one = {"map": "m", "group": group, "dtype": "float32", "f_seconds": 1e-5, "entries": entries, "tol": 1e-5}
    return {"environment": {}, "speed": [one]}


@pytest.mark.slow
def test_a_tiny_run_writes_record_page_and_plots(tmp_path):
    pytest.importorskip("matplotlib")
    parts = ("speed", "overhead", "quality", "growth", "jax")
    record = measure(tmp_path, parts=parts, jax="no-such-python", extent=TINY, progress=False)
    stored = json.loads((tmp_path / "records/comparison.json").read_text())
    assert stored == json.loads(json.dumps(record))
    page = (tmp_path / "how_it_compares.md").read_text()
    for name, block in blocks(stored).items():
        assert f"<!-- begin {name} -->\n{block}\n<!-- end {name} -->" in page
    default = next(e for e in stored["speed"][0]["entries"] if e["solver"] == DEFAULT)
    assert f"| {default['ms']:.3g} ms | {default['evaluations']} |" in page
    assert "no-such-python: No such file" in page
    assert "1 of 1" in page
    assert sorted(path.name for path in (tmp_path / "assets").iterdir()) == ["growth.svg", "quality.svg", "speed.svg"]
    assert stored["figures"] == ["speed", "quality", "growth"]


def test_parts_left_out_keep_their_numbers_and_prose_stays(tmp_path):
    measure(tmp_path, parts=["growth"], extent=TINY, plots=False, progress=False)
    page = tmp_path / "how_it_compares.md"
    page.write_text(page.read_text().replace("## Memory\n", "## Memory\n\nOur own words.\n"))
    first = json.loads((tmp_path / "records/comparison.json").read_text())
    again = measure(tmp_path, parts=["quality"], extent=TINY, plots=False, progress=False)
    assert again["growth"] == first["growth"]
    assert set(again["measured"]) == {"growth", "quality"}
    assert "Our own words." in page.read_text()
    page.write_text(page.read_text().replace("states held at most", "spoiled"))
    drawn = measure(tmp_path, parts=[], plots=False, progress=False)
    assert drawn["environment"] == again["environment"]
    assert "states held at most" in page.read_text()
    assert "spoiled" not in page.read_text()


def test_what_was_measured_before_an_interruption_is_kept(tmp_path, monkeypatch):
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.comparison.run.measure_growth", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, parts=["quality", "growth"], extent=TINY, plots=False, progress=False)
    stored = json.loads((tmp_path / "records/comparison.json").read_text())
    assert [e["solved"] for e in stored["quality"]["entries"]] == [True] * 4


def test_a_page_without_a_marker_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Mine\n")
    with pytest.raises(ValueError, match="no block 'machine'"):
        write_page(page, {"environment": {}})
    assert page.read_text() == "# Mine\n"


def test_an_unknown_part_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'speed'"):
        measure(tmp_path, parts=["sped"])


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--parts", "sped"], "did you mean 'speed'"),
        (["--parts", "growth,"], "an empty name"),
        (["--quick"], "unrecognized arguments: --quick"),
    ],
)
def test_mistakes_in_the_command_are_told(argv, text, capsys, tmp_path):
    try:
        code = main([*argv, "--out", str(tmp_path)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert text in capsys.readouterr().err


def test_the_command_prints_verdicts_and_paths(tmp_path, capsys):
    former = {"record": "how it compares", **speed_record(1.0, 2.0)}
    (tmp_path / "records").mkdir()
    (tmp_path / "records/comparison.json").write_text(json.dumps(former))
    argv = ["--parts", "jax", "--jax", "no-such-python", "--no-plots", "--out", str(tmp_path)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "MISSED  time, slow or expanding: 2x geometric mean" in out
    assert "not compared: jax (no-such-python: No such file or directory)" in out
    assert str(tmp_path / "records/comparison.json") in out


def test_a_cost_below_zero_is_not_printed():
    overhead = [{"solver": "broyden", "per_evaluation_us": 130.3, "per_solve_us": -745.1, "f_us": 5.0}]
    assert "| broyden | 130.3 us | not resolved |" in blocks({"environment": {}, "overhead": overhead})["overhead"]


def test_a_cost_within_its_error_is_not_printed():
    known = {"solver": "broyden", "f_us": 5.0, "per_evaluation_us": 30.3, "per_evaluation_error_us": 1.5}
    text = blocks({"environment": {}, "overhead": [{**known, "per_solve_us": 70.0, "per_solve_error_us": 40.0}]})
    assert "| broyden | 30.3 us +- 1.5 | not resolved (+- 40 us) |" in text["overhead"]


def test_the_line_through_measured_times_knows_its_errors():
    line = fitted((10, 20, 40, 80), (52.0, 74.0, 131.0, 248.0))
    assert line == pytest.approx((2.8322, 20.0435, 0.0695, 3.2038), abs=1e-4)


@pytest.mark.parametrize(
    "part", [{"measured": None}, {"speed": 1}, {"overhead": [{}]}, {"quality": [1]}, {"growth": {"a": 1}}]
)
def test_a_malformed_record_or_page_is_found_before_the_work(tmp_path, capsys, monkeypatch, part):
    monkeypatch.setattr("benchmarks.comparison.run._measure", lambda *_: pytest.fail("it measured"))
    stored = tmp_path / "records/comparison.json"
    stored.parent.mkdir()
    stored.write_text(json.dumps({"record": "how it compares", **part}))
    argv = ["--parts", "adjoint", "--no-plots", "--out", str(tmp_path)]
    assert main(argv) == 2
    assert f"the record {stored} is malformed" in capsys.readouterr().err
    stored.unlink()
    (tmp_path / "how_it_compares.md").write_text("no markers")
    assert main(argv) == 2
    assert "has no block 'machine'" in capsys.readouterr().err


@pytest.mark.slow
def test_causes_are_diagnosed_anew_and_drawn_into_their_page(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page = tmp_path / "guides/not_converging.md"
    page.parent.mkdir()
    page.write_text("words\n<!-- begin causes -->\nold\n<!-- end causes -->\nmore words\n")
    assert main(["--parts", "causes", "--out", str(tmp_path)]) == 0
    patterns = json.loads((tmp_path / "records/causes.json").read_text())["patterns"]
    assert [one["cause"] for one in patterns] == [
        "SLOW_CONTRACTION", "COMPLEX_PAIR", "TWO_CYCLE", "NON_NORMAL", "DIVERGENCE", "RUNAWAY",
    ]  # fmt: skip
    assert all(one["worked"] for one in patterns)
    text = page.read_text()
    assert text.startswith("words\n")
    assert text.endswith("more words\n")
    assert f"\n{causes.block(patterns)}\n" in text
    assert (tmp_path / "assets/not_converging.svg").exists()


def test_a_contender_that_misses_the_true_residual_is_tightened_and_a_wrong_one_is_unsolved():
    m = tiny_map()

    def sloppy(given, tol):
        z, _ = ours("x", FixedPoint()).solve(given, min(1.0, 3 * tol))
        return z, None

    found = outcome_of(Contender("sloppy", sloppy), m)
    assert found.solved
    assert found.tol < m.tol
    assert true_residual(m.exact(), sloppy(m, found.tol)[0]).max() <= 1.05 * m.tol
    wrong = outcome_of(Contender("wrong", lambda given, tol: (given.z0 + 1, None)), m)
    assert not wrong.solved
    assert wrong.residual > 1e-3


def test_evaluations_are_those_that_f_saw():
    found = outcome_of(ours(DEFAULT), tiny_map())
    calls = 0

    class Counted(SpeedMap):
        @property
        def f(self):
            def f(z, *args):
                nonlocal calls
                calls += 1
                return FORMULAS[self.kind](self.shared, z, *args)

            return f

    m = tiny_map()
    ours(DEFAULT).solve(Counted(m.name, m.group, m.kind, m.shared, m.args, m.z0, m.max_iter), m.tol)
    assert found.evaluations == calls > 1


def test_measured_maps_have_every_contender_with_a_time():
    pytest.importorskip("torchdeq")
    (one,) = measure_speed([tiny_map()], rounds=1, labels=(DEFAULT, *PEERS))
    assert [e["solver"] for e in one["entries"]] == [DEFAULT, *PEERS]
    assert all(e["ms"] > 0 for e in one["entries"])
    assert one["f_seconds"] > 0


def test_verdicts_compare_with_the_best_peer_that_solves():
    (verdict,) = [v for v in verdicts(speed_record(1.0, 13.0)) if v.what.startswith("time")]
    assert verdict.met
    (verdict,) = [v for v in verdicts(speed_record(1.0, 11.0)) if v.what.startswith("time")]
    assert not verdict.met


def test_losses_are_said():
    assert losses(speed_record(1.0, 2.0)) == []
    (said,) = losses(speed_record(2.0, 1.0))
    assert "the default takes 2 ms, torchdeq.anderson 1 ms" in said
    assert said in blocks(speed_record(2.0, 1.0))["losses"]


def test_every_section_draws_with_nothing_measured():
    made = blocks({"environment": {}})
    assert set(made) == set(SECTIONS)
    assert all(made.values())


@pytest.mark.slow
def test_the_fifty_problems_have_names_of_their_own_and_take_both_dtypes():
    names = []
    for problem in all_problems():
        names.append(problem.name)
        if problem.start.numel() <= 2048:
            for dtype in (torch.float32, torch.float64):
                assert problem.f(problem.start.to(dtype)).dtype == dtype
    assert len(set(names)) == len(names) == 50


def test_a_wrong_answer_is_no_solved_problem():
    nan = QualityProblem("nan", lambda z: z * torch.nan, torch.ones(2, 2))
    (found,) = measure_quality([nan], ["anderson"], [torch.float32])["entries"]
    assert (found["solved"], found["good_rows"], found["rows"]) == (False, 0, 2)


def test_memory_of_ours_does_not_grow_with_the_evaluations_allowed():
    # both more than any history of ours holds: fewer evaluations fill less of it
    found = {one["solver"]: one["states"] for one in measure_growth((24, 96))}
    assert max(Anderson().memory, Broyden().memory) < 24
    for name in ("fixed_point", "anderson", "broyden"):
        short, long = found[name]
        assert long <= 1.05 * short
    theirs = found["torchdeq.broyden"]
    assert theirs[0] is None or theirs[1] > 3 * theirs[0]


def test_adjoint_is_measured_against_the_dense_solve():
    (one,) = measure_adjoint([tiny_map()], rounds=1)
    us = one["entries"][0]
    assert us["reaches"]
    assert us["error"] <= 1e-5
    assert us["backward_ms"] > 0


@pytest.mark.slow
def test_the_counts_of_the_progress_bar_are_right():
    assert COUNTS["adjoint"] == len(list(adjoint_maps()))
    assert COUNTS["double"] == len(list(_double_maps()))
    assert COUNTS["speed"] == len(list(speed_maps()))


def test_maps_are_what_they_say():
    maps = {m.name: m for m in speed_maps()}
    assert len(maps) == 14
    for name, m in maps.items():
        assert m.f(m.z0, *m.args).shape == m.z0.shape
        assert torch.equal(m.closed(m.z0), m.f(m.z0, *m.args)), name
    slow = maps["symmetric .99, N=64 B=24"].shared[0].double()
    assert math.isclose(torch.linalg.eigvalsh(slow).abs().max().item(), 0.99, rel_tol=1e-5)
    for _, m, bad in bad_rows():
        alone = m.take(torch.tensor([bad]))
        together = m.closed(m.z0 + 1)[bad]
        assert torch.allclose(alone.closed(alone.z0 + 1)[0], together, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_contenders_are_interleaved_and_each_has_its_samples():
    order = []
    taken = interleaved([lambda: order.append("a"), lambda: order.append("b")], 2)
    assert [len(samples) for samples in taken] == [2, 2]
    assert {"a", "b"} == set(order)


@pytest.mark.parametrize(
    "module", ["adjoint", "causes", "growth", "maps", "page", "quality", "quality_maps", "verdicts"]
)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(f"benchmarks.comparison.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
