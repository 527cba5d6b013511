"""What a comparison prints: as wide as the reader's window, as it is made, and with a verdict at its end."""

from __future__ import annotations

import re

import pytest

from deqlm.cli.main import main
from deqlm.comparison import compare, compare_gradients, compare_literature, compare_starts
from deqlm.comparison.solvers.entry import Entry, ProblemResult
from deqlm.comparison.solvers.verdict import verdict

FAST = {"repeats": 1, "progress": False}
TINY = "symmetric:rho=0.5,unknowns=8"


@pytest.fixture(scope="module")
def results():
    return {
        "solvers": compare(["two_cycle", TINY], "anderson,fixed_point,torchdeq.fixed_point_iter", **FAST),
        "gradients": compare_gradients("tanh:rho=0.5,unknowns=8", "phantom,one_step", **FAST),
        "starts": compare_starts("inputs:change=0.01", "fixed_point", **FAST),
        "literature": compare_literature("dottie,boggs", "newton,fixed_point,anderson,broyden,scipy.hybr"),
    }


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("kind", ["solvers", "gradients", "starts", "literature"])
def test_a_report_fits_its_width(results, kind, width):
    lines = results[kind].table(width).splitlines()
    assert max(map(len, lines)) <= width, max(lines, key=len)
    assert max(map(len, str(results[kind]).splitlines())) <= 80


def test_where_there_is_room_nothing_is_left_out(results):
    wide, narrow = (results["solvers"].block(results["solvers"].problems[0], width) for width in (120, 80))
    assert "row-evals" in wide
    assert "row-evals" not in narrow
    assert re.search(r"fixed_point .* FAILS \(32 MAX_ITER\)", wide)
    assert "\n    FAILS (32 MAX_ITER)\n" in narrow


def test_the_verdict_of_several_problems(results):
    text = str(results["solvers"])
    assert "Most robust here: anderson (all 2 problems solved)." in text
    assert 'deqlm.DEQ(layer, solver="anderson")' in text


def entry(solver, outcome, evaluations, seconds=None, statuses=None, residual=1e-6):
    times = [] if seconds is None else [seconds]
    return Entry(solver, outcome, evaluations=evaluations, times=times, statuses=statuses or {}, residual=residual)


def problem(*entries, label="mine.py:make", yours=True):
    return ProblemResult(label, "your own map", 2, 3, yours=yours, entries=list(entries))


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        (("solved", 12), "Your map contracts fast: plain iteration makes 2 evaluations per digit."),
        (("solved", 300), "Your map contracts slowly: plain iteration makes 50 evaluations per digit."),
        (("unsolved", 200, None, {"MAX_ITER": 2}), "Your map contracts too slowly for plain iteration, or not at all."),
        (("unsolved", 20, None, {"DIVERGED": 2}), "Your map does not contract: plain iteration runs away."),
    ],
)
def test_what_kind_of_map_it_is(plain, said):
    mine = problem(entry("fixed_point", *plain), entry("anderson", "solved", 9, 0.1))
    assert said in verdict([mine], ["fixed_point", "anderson"])
    drawn = problem(*mine.entries, label="tanh", yours=False)
    assert said not in verdict([drawn], ["fixed_point", "anderson"])


def test_where_nobody_solves_the_way_on_is_named():
    mine = problem(entry("anderson", "unsolved", 200))
    said = verdict([mine], ["anderson"])
    assert said == ["No solver solved mine.py:make.", "To go on: `deqlm diagnose mine.py:make` says why."]
    assert verdict([problem()], []) == []
    assert verdict([problem(Entry("anderson"))], ["anderson"]) == []


def test_times_decide_only_where_they_were_taken():
    said = verdict([problem(entry("a", "solved", 9, 0.2), entry("b", "solved", 12, 0.1))], ["a", "b"])
    assert "Fewest evaluations where they solve: a." in said
    assert "Least time where it solves: b (100 ms)." in said
    untimed = verdict([problem(entry("a", "solved", 9))], ["a"])
    assert not any("time" in sentence for sentence in untimed)


def test_problems_are_seen_as_they_are_made(capsys):
    seen = []
    compare([TINY, "two_cycle"], "anderson", each=lambda problem: seen.append(problem.label), **FAST)
    assert seen == [TINY, "two_cycle"]
    compare(TINY, "anderson", each=lambda problem: f"done {problem.label}", **FAST)
    assert capsys.readouterr().out == f"done {TINY}\n"


def test_the_command_prints_every_part_once_and_names_a_picture(capsys, tmp_path):
    said = ["compare", "--problems", f"{TINY},two_cycle", "--solvers", "anderson", "--repeats", "1"]
    assert main([*said, "--width", "80", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    report = out.partition(" s in all")[0]
    assert max(map(len, report.splitlines())) <= 80
    for part in (f"{TINY}:", "two_cycle:", "Most robust here", "residual  that of the worst row"):
        assert report.count(part) == 1
    assert f"look first at {tmp_path / 'residual_evaluations.svg'}" in out


@pytest.mark.parametrize("width", ["79", "-80", "wide", "80.5"])
def test_a_width_that_is_none(capsys, width):
    assert main(["compare", "--width", width]) == 2
    assert f"must be a whole number >= 80, got '{width}'" in capsys.readouterr().err
