"""`compare_starts`: what the start from the solution before is worth, and where it is not."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch

from deqlm.cli.main import main
from deqlm.comparison import SEQUENCES, Sequence, Settings, StartComparison, UserSequence, compare_starts
from deqlm.comparison.problems.named import to_sequence
from deqlm.comparison.problems.sequences import STANDARD, Epochs, Inputs, Tokens
from deqlm.comparison.starts.result import StartEntry, StartProblem
from deqlm_solvers import StepSolver, options, register_solver

FAST = {"repeats": 1, "batch": 3, "progress": False}


def contraction(batch, rate=0.5, shift=0.01):
    """Shifted contractions with known counts."""
    for t in range(4):
        yield lambda z, t=t: rate * z + 1 + shift * t, torch.zeros(batch, 3, dtype=torch.float64)


def test_counts_of_a_linear_map_are_those_of_its_rate():
    (problem,) = compare_starts(contraction, "fixed_point", dtype="float64", **FAST).problems
    (entry,) = problem.entries
    assert (problem.rows, problem.unknowns, problem.solves) == (3, 3, 3)
    # |r_k| = rate^k |r_0| against a tolerance of 1e-10 |f|: from zero |r_0| = 1 + shift t, from before it is the shift
    zero = math.ceil(math.log(1 / (2 * 1e-10), 2)) + 1
    assert entry.zero == pytest.approx([zero] * 3, abs=1)
    assert sum(entry.zero) - sum(entry.previous) == pytest.approx(3 * math.log(1 / 0.01, 2), abs=3)
    assert entry.verdict == "pays"
    assert (entry.unsolved_zero, entry.unsolved_previous, entry.both) == (0, 0, 9)
    assert entry.apart < 1e-9


@pytest.mark.parametrize(
    ("sequence", "verdict"),
    [
        (Inputs(change=0.001), "pays"),
        (Inputs(change=1.4), "no difference"),
        (Epochs(), "pays"),
        (Tokens(carry=2.0), "pays"),
        (Tokens(carry=-2.0), "costs"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.label,
)
def test_where_it_pays(sequence, verdict):
    entry = compare_starts(sequence, "fixed_point", repeats=1, progress=False).problems[0].entries[0]
    assert entry.unsolved_zero == entry.unsolved_previous == 0
    if verdict == "no difference":
        assert abs(entry.saved) < 0.1
    else:
        assert entry.verdict == verdict


@pytest.mark.parametrize("sequence", STANDARD, ids=lambda sequence: sequence.label)
def test_members_repeat_and_contract(sequence):
    settings = Settings(dtype=torch.float64, batch=2, seed=3)
    twins = list(zip(sequence.members(settings), sequence.members(settings), strict=True))
    assert len(twins) == sequence.length
    for case, twin in twins:
        assert torch.equal(case.f(case.z0), twin.f(twin.z0))
        torch.testing.assert_close(case.f(case.z0), case.exact(case.z0))
        z = case.z0
        for _ in range(200):
            z = case.f(z)
        torch.testing.assert_close(case.f(z), z)


def test_inputs_change_by_what_they_say():
    first, second = list(Inputs(change=0.1, length=2).members(Settings(dtype=torch.float64)))
    a, b = (case.f(torch.zeros_like(case.z0)).atanh() for case in (first, second))
    assert ((a - b).norm() / a.norm()).item() == pytest.approx(0.1, rel=0.3), "the two directions are not orthogonal"


def test_the_epochs_are_those_of_a_training_that_learns():
    cases = list(Epochs(rate=0.01, length=4).members(Settings(dtype=torch.float64)))
    points = [case.f(case.z0) for case in cases]
    assert all(not torch.equal(a, b) for a, b in pairwise(points))


def test_failing_missing_and_broken_are_shown(registries):
    @register_solver("crashes")
    @options
    class Crashes(StepSolver):
        def init(self, z):
            raise ImportError("crashes needs nothing_such")

        def step(self, f, at, state):
            raise RuntimeError("no step")

    def broken():
        yield torch.cos, torch.zeros(2, 3)
        raise RuntimeError("no second map")

    result = compare_starts(
        ["inputs", broken, lambda: [(torch.cos, torch.zeros(1, 2))]], ["anderson", "crashes"], **FAST
    )
    inputs, second, third = result.problems
    assert [entry.outcome for entry in inputs.entries] == ["ran", "not installed"]
    assert second.message.endswith(": RuntimeError: no second map")
    assert third.message == "a sequence needs two maps at least"
    text = str(result)
    assert "crashes not installed" in text
    assert "no solver carries its history" in text
    assert max(map(len, text.splitlines())) <= 120
    never = StartEntry("s", "ran", zero=[5.0], previous=[5.0], unsolved_zero=3, unsolved_previous=3)
    assert never.verdict == "unsolved"
    assert StartEntry("s", "ran", zero=[5.0], previous=[2.0], unsolved_previous=1, both=2).verdict == "fails"
    with pytest.raises(KeyError, match="did you mean 'anderson'"):
        inputs.entry("andersen")


def test_names_are_checked():
    with pytest.raises(KeyError, match="did you mean 'inputs'"):
        compare_starts("input")
    with pytest.raises(ValueError, match=r"change must be in \(0, 1.4\]"):
        compare_starts("inputs:change=2")
    with pytest.raises(TypeError, match="a sequence must be a name"):
        to_sequence(3)
    assert isinstance(to_sequence(contraction), UserSequence)
    assert all(issubclass(SEQUENCES[name], Sequence) for name in SEQUENCES)


def test_command_record_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\ndef make(batch=2):\n    '''Mine.'''\n    for t in range(3):\n"
        "        yield lambda z, t=t: 0.5 * z + 1 + 0.01 * t, torch.zeros(batch, 3)\n"
    )
    out = tmp_path / "out"
    argv = ["compare", "--starts", "--problems", f"inputs:length=3,{file}:make", "--solvers", "anderson"]
    assert main([*argv, "--repeats", "1", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "previous" in shown
    assert "Mine" in shown
    assert {path.name for path in out.iterdir()} == {"starts.json", "starts.txt", "starts.svg", "starts.png"}
    record = json.loads((out / "starts.json").read_text())
    assert record["record"] == "deqlm compare --starts"
    assert record["problems"][0]["entries"][0]["solver"] == "anderson"
    assert main(["compare", "--starts", "--list-problems"]) == 0
    assert "tokens" in capsys.readouterr().out
    assert main(["compare", "--starts", "--gradients"]) == 2


def test_the_plot_has_a_line_for_each_start():
    pytest.importorskip("matplotlib")
    from deqlm.comparison.starts.plot import draw_sequences

    problem = StartProblem("p", "title", entries=[StartEntry("anderson", "ran", zero=[9.0, 8.0], previous=[3.0, 2.0])])
    panel = draw_sequences(StartComparison([problem]).to_dict()).axes[0]
    assert [list(line.get_ydata()) for line in panel.get_lines()] == [[9.0, 8.0], [3.0, 2.0]]
    assert list(panel.get_lines()[0].get_xdata()) == [2, 3]
