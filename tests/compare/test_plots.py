"""Plots: written, equal byte for byte, and nobody is missing from them."""

from __future__ import annotations

import pytest

from deqlm.comparison import Comparison, Entry, ProblemResult, compare
from deqlm.comparison.solvers.foremost import GREY, foremost, looks_of
from deqlm.comparison.solvers.plots import draw_profile, draw_residuals, profile
from deqlm.reporting.style import family, looks, steady

pytest.importorskip("matplotlib")

NAMES = ["residual_evaluations", "residual_time", "profile"]


@pytest.fixture(scope="module")
def result():
    problems = ["symmetric:rho=0.5,unknowns=8", "two_cycle:unknowns=4"]
    return compare(problems, ["fixed_point", "anderson", "broyden"], repeats=1, memory=False, progress=False)


@pytest.mark.slow
def test_written_as_svg_and_png_and_deterministic(result, tmp_path):
    first, second = result.save(tmp_path / "a"), result.save(tmp_path / "b")
    assert {p.name for p in first} == {"compare.json", "compare.txt"} | {
        f"{n}.{e}" for n in NAMES for e in ("svg", "png")
    }
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    svg = (tmp_path / "a/profile.svg").read_text()
    assert "<dc:date>" not in svg
    assert svg.startswith("<?xml")


def test_a_failing_solver_ends_with_a_cross(result):
    with steady():
        made = draw_residuals(result.to_dict(), "evaluations")
    panel = made.axes[1]
    assert panel.get_title(loc="left") == "two_cycle:unknowns=4"
    markers = [line.get_marker() for line in panel.get_lines() if line.get_marker() != "None"]
    assert sorted(markers) == ["X", "o", "o"]


def test_raised_and_missing_solvers_are_named_in_the_panel():
    entries = [Entry(solver="boom", outcome="raised"), Entry(solver="gone", outcome="not installed")]
    comparison = Comparison(problems=[ProblemResult("p", "title", 1, 1, 1e-5, 10, entries=entries)])
    with steady():
        made = draw_residuals(comparison.to_dict(), "seconds")
        draw_profile(comparison.to_dict())
    assert "boom raised" in made.axes[0].texts[0].get_text()
    assert "gone not installed" in made.axes[0].texts[0].get_text()


def test_profile_ratios():
    def entry(name, outcome, evaluations):
        return Entry(solver=name, outcome=outcome, evaluations=evaluations)

    comparison = Comparison(
        problems=[
            ProblemResult("p", "", entries=[entry("a", "solved", 10), entry("b", "solved", 30)]),
            ProblemResult("q", "", entries=[entry("a", "unsolved", 5), entry("b", "solved", 20)]),
        ]
    )
    assert profile(comparison.to_dict(), "evaluations") == {"a": [1.0], "b": [1.0, 3.0]}


def test_looks_differ_within_and_between_families():
    names = [
        "anderson",
        "broyden",
        "scipy.anderson",
        "scipy.broyden1",
        "torchdeq.anderson",
        "mine.first",
        "yours.first",
    ]
    chosen = looks(names)
    assert len({(look.color, str(look.linestyle)) for look in chosen.values()}) == len(names)


def test_the_user_keeps_her_settings():
    import matplotlib

    before = matplotlib.rcParams["font.size"]
    with steady():
        assert matplotlib.rcParams["svg.hashsalt"] == "deqlm"
    assert matplotlib.rcParams["font.size"] == before


MANY = {f"own{i}": [1.0 + i] * 3 for i in range(9)} | {"scipy.a": [9.0] * 3, "scipy.b": [8.0] * 2, "peer.a": [50.0]}


def test_of_many_the_foremost_have_colours_of_their_own():
    assert foremost(MANY) == ["own0", "own1", "own2", "own3", "own4", "scipy.a", "peer.a"]
    chosen = looks_of(MANY)
    coloured = [(look.color, str(look.linestyle)) for look in chosen.values() if look.color != GREY]
    assert set(chosen) == set(MANY)
    assert len(set(coloured)) == len(coloured) == 7
    assert [look.color == GREY for look in chosen.values()] == [True] * 5 + [False] * 7


def test_of_a_few_none_is_grey():
    few = dict(list(MANY.items())[-8:])
    assert foremost(few) == list(few)
    assert looks_of(few) == looks(list(few))


def test_a_figure_of_many_counts_the_grey_ones():
    entries = [Entry(solver=name, outcome="solved", evaluations=int(cost[0])) for name, cost in MANY.items()]
    comparison = Comparison(problems=[ProblemResult("p", "", 1, 1, 1e-5, 10, entries=entries)])
    with steady():
        made = draw_residuals(comparison.to_dict(), "evaluations")
    shown = [text.get_text() for text in made.legends[0].get_texts()]
    assert "5 others" in shown
    assert len([name for name in shown if name in MANY]) == 7
    assert {family(name) for name in shown if name in MANY} == {"", "scipy", "peer"}
