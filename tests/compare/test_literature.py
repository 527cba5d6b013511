"""The suite of the literature: judged by the residual of what comes back, told by table, record and page."""

from __future__ import annotations

import json
import math
import re
import sys

import pytest
import torch

from deqlm.cli.main import main
from deqlm.comparison import PROBLEMS, Settings, compare_literature
from deqlm.comparison.literature.contenders import PEERS, contenders, is_peer, own
from deqlm.comparison.literature.entry import LiteratureEntry, LiteratureRow
from deqlm.comparison.literature.result import LiteratureComparison
from deqlm.comparison.literature.run import within_tolerance
from deqlm.comparison.literature.verdict import behind, false_words, scores, unsolved
from deqlm.comparison.problems.literature import literature, literature_problems
from deqlm_solvers import SOLVERS, Solve, Solver, Status, Stop, options, register_solver
from deqlm_solvers.loop.criterion import SMALLEST

THREE = "boggs,dottie,chebyquad_8"


def entry(solver, form="f", outcome="solved", word="CONVERGED", evaluations=5):
    return LiteratureEntry(solver, form, outcome, word, 0.0 if outcome == "solved" else 0.5, evaluations, 0.1)


def row(label, *entries):
    return LiteratureRow(label, "source", 1, 2, entries=list(entries))


def test_three_problems_are_solved_in_both_signs_and_one_by_nobody():
    pytest.importorskip("scipy")
    result = compare_literature(THREE, "newton,scipy.hybr", progress=False)
    assert [problem.label for problem in result.problems] == THREE.split(",")
    assert [(e.solver, e.form, e.outcome) for e in result["boggs"].entries] == [
        ("newton", "z - F", "solved"), ("newton", "z + F", "solved"), ("scipy.hybr", "F", "solved")
    ]  # fmt: skip
    assert [(e.solver, e.form) for e in result["dottie"].entries] == [("newton", "f"), ("scipy.hybr", "F")]
    assert all(e.residual <= 1e-8 and e.word == "CONVERGED" and e.evaluations > 3 for e in result["boggs"].entries)
    assert unsolved(result.problems) == ["chebyquad_8"]
    assert min(e.residual for e in result["chebyquad_8"].entries) >= literature("chebyquad_8").least * (1 - 1e-6)
    text = str(result)
    assert "solved of 3" in text
    assert "nobody solves chebyquad_8" in text


def test_a_solver_that_lies_is_told(registries):
    @register_solver("liar")
    @options
    class Liar(Solver):
        honours = frozenset(Stop.__dataclass_fields__)

        def solve(self, f, z0, stop, frame):
            sol = Solve("fixed_point", stop)(f, z0)
            return sol.replace(z=z0, status=torch.full_like(sol.status, int(Status.CONVERGED)))

    assert "liar" in own()
    result = compare_literature("boggs,dottie", "liar,fixed_point", progress=False)
    assert [(name, e.solver, e.form) for name, e in false_words(result.problems)] == [
        ("boggs", "liar", "z - F"), ("boggs", "liar", "z + F"), ("dottie", "liar", "f")
    ]  # fmt: skip
    assert result["dottie"].entries[0].residual == pytest.approx(1.0)
    assert "FALSE" in str(result)
    assert "false: liar on dottie as f, ||F|| = 1.0e+00" in str(result)


def test_a_solver_that_raises_keeps_its_place(registries):
    @register_solver("raiser")
    @options
    class Raiser(Solver):
        honours = frozenset(Stop.__dataclass_fields__)

        def solve(self, f, z0, stop, frame):
            raise RuntimeError("no\nmore")

    result = compare_literature("dottie", "raiser", progress=False)
    only = result["dottie"].entries[0]
    assert (only.outcome, only.false, only.ran) == ("raised", False, False)
    assert re.fullmatch(r"\S+test_literature\.py:\d+, in \w+: RuntimeError: no", only.message)
    assert scores(result.problems)[0].raised == 1


def test_the_tolerance_is_absolute_and_knows_of_rounding():
    double = literature("double_root")
    assert within_tolerance(double, torch.tensor([[5.0]]))
    assert within_tolerance(double, torch.tensor([[5 + 4e-5]], dtype=torch.float64))  # 5 d^2
    assert not within_tolerance(double, torch.tensor([[5 + 5e-5]], dtype=torch.float64))
    assert not within_tolerance(double, torch.tensor([[math.nan]]))


def test_verdicts_count_by_sign_and_name_what_only_peers_solve():
    problems = [
        row("a", entry("mine", "z - F"), entry("mine", "z + F", "unsolved", "STALLED"), entry("scipy.lm", "F")),
        row("b", entry("mine", "f", "unsolved", "MAX_ITER"), entry("scipy.lm", "F", evaluations=9)),
        row("c", entry("mine", "f", "unsolved"), entry("scipy.lm", "F", "unsolved", "FAILED")),
    ]
    mine, peer = scores(problems)
    assert (mine.signs, mine.either, mine.false, mine.evaluations) == ((1, 0), 1, 1, 5)
    assert (peer.signs, peer.either, peer.false, peer.evaluations) == ((2, 2), 2, 0, 7)
    assert behind(problems) == [
        ("a", "z + F", ["scipy.lm"]), ("b", "z - F", ["scipy.lm"]), ("b", "z + F", ["scipy.lm"])
    ]  # fmt: skip
    assert unsolved(problems) == ["c"]
    assert [(name, e.solver) for name, e in false_words(problems)] == [("c", "mine")]


def test_all_our_solvers_and_all_peers_take_part():
    labels = [one.label for one in contenders()]
    assert labels == [*own(), *PEERS]
    assert set(own()) >= {"fixed_point", "anderson", "broyden", "newton", "newton_krylov", "fallback"}
    assert not any(map(is_peer, own()))
    assert all(map(is_peer, PEERS))
    assert "deer" not in own()
    assert set(own()) | {"deer"} == {name for name in SOLVERS if "." not in name}


def test_peers_have_their_own_defaults_and_options_can_be_told():
    labels = [one.label for one in contenders("anderson:memory=5,scipy.df-sane")]
    assert labels == ["anderson:memory=5", "scipy.df-sane"]
    with pytest.raises(KeyError, match="did you mean 'anderson'"):
        contenders("andersn")
    with pytest.raises(ValueError, match="asked for twice"):
        contenders("anderson,anderson")


def test_peers_are_held_to_their_own_words():
    """lm calls a minimum that is no root a success; a method of least squares speaks of minima only."""
    pytest.importorskip("scipy")
    result = compare_literature("chebyquad_8,boggs", "scipy.lm,scipy.trf,scipy.df-sane", progress=False)
    assert [(e.outcome, e.word, e.false) for e in result["chebyquad_8"].entries] == [
        ("unsolved", "CONVERGED", True), ("unsolved", "MINIMUM", False), ("unsolved", "FAILED", False)
    ]  # fmt: skip
    assert [(e.form, e.outcome) for e in result["boggs"].entries] == [("F", "solved")] * 3
    assert all(e.evaluations > 10 for e in result["boggs"].entries)


def test_a_peer_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    result = compare_literature("dottie", "newton,scipy.hybr", progress=False)
    assert [e.outcome for e in result["dottie"].entries] == ["solved", "not installed"]
    assert "not installed" in str(result)


def test_the_command_prints_and_writes(tmp_path, capsys):
    argv = ["compare", "--suite", "literature", "--problems", THREE, "--solvers", "newton,fixed_point"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    assert max(map(len, out.out.splitlines())) <= 120
    assert {path.name for path in tmp_path.iterdir()} == {"literature.json", "literature.txt"}
    record = json.loads((tmp_path / "literature.json").read_text())
    assert record["record"] == "deqlm compare --suite literature"
    assert record["settings"]["dtype"] == "float64"
    assert [len(problem["entries"]) for problem in record["problems"]] == [4, 2, 4]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    assert "in place of the run" in capsys.readouterr().out


def test_one_of_them_is_a_problem_of_the_plain_comparison():
    plus, minus = (PROBLEMS["literature"](case="wood", sign=sign) for sign in ("plus", "minus"))
    assert plus.label == "literature:case=wood,sign=plus"
    case = minus.build(Settings(dtype=torch.float64, batch=2))
    wood = literature("wood")
    assert torch.equal(case.z0, wood.start.expand(2, 4))
    assert torch.equal(case.f(case.z0), case.z0 - wood.system(case.z0))
    assert torch.equal(plus.build(Settings(dtype=torch.float64)).f(wood.start), wood.start + wood.system(wood.start))
    with pytest.raises(KeyError, match="did you mean 'wood'"):
        PROBLEMS["literature"](case="wod")
    with pytest.raises(ValueError, match="sign='plus' is not used for dottie, which is a map"):
        PROBLEMS["literature"](case="dottie", sign="plus")


def test_the_command_lists_the_problems(capsys):
    assert main(["compare", "--suite", "literature", "--list-problems"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [problem.name for problem in literature_problems()]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--suite", "literatur"], "invalid choice"),
        (["--suite", "literature", "--problems", "bogs"], "did you mean 'boggs'"),
        (["--suite", "literature", "--solvers", "scipy.hybrid"], "did you mean 'scipy.hybr'"),
        (["--suite", "literature", "--dtype", "float64"], "--dtype has no meaning with --suite literature"),
        (["--suite", "literature", "--gradients"], "--gradients has no meaning with --suite literature"),
    ],
)
def test_mistakes_in_the_command_are_told(argv, text, capsys, tmp_path):
    try:
        code = main(["compare", *argv, "--out", str(tmp_path)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert text in capsys.readouterr().err


HOURS = {
    *("alternating_anderson", "anderson_type1", "bracket", "df_sane", "levenberg_marquardt", "momentum"),
    *("pseudo_transient", "reversible"),
}
"""Solvers whose every step is operations of torch: 10,000 of them on each unsolved problem take an hour in all. The
test with a relative tolerance, of fewer evaluations, has them."""


@pytest.fixture(scope="module")
def ours() -> LiteratureComparison:
    return compare_literature(solvers=[name for name in own() if name not in HOURS], progress=False)


@pytest.mark.slow
def test_none_of_our_solvers_says_a_false_word_and_none_raises(ours):
    assert [(name, e.solver, e.form, e.residual) for name, e in false_words(ours.problems)] == []
    assert [(e.solver, e.message) for problem in ours.problems for e in problem.entries if not e.ran] == []


@pytest.mark.slow
def test_a_relative_tolerance_gives_no_false_word_either():
    """CONVERGED means ||f(z) - z|| <= atol + rtol ||f(z)|| at the point that is returned; below SMALLEST it is zero.

    Of the starts of a system the usual one, and 500 evaluations at most: the absolute tolerance has seen the rest.
    """
    wrong = []
    for problem in literature_problems():
        if problem.name.endswith(("_x10", "_x100")):
            continue
        for form in problem.forms:
            f = problem.map(form)
            for name in own():
                stop = Stop(max_iter=min(problem.max_iter, 500), rtol=1e-8)
                with torch.no_grad():
                    sol = Solve(name, stop)(f, problem.start)  # type: ignore[arg-type]
                    fz = f(sol.z)
                size = torch.linalg.vector_norm(fz).item()
                told = bool(sol.converged)
                residual = torch.linalg.vector_norm(fz - sol.z).item()
                if told and not residual <= max(1.0001e-8 * size, SMALLEST):
                    wrong.append((problem.name, form, name))
    assert not wrong
