"""Compiled solves are rows of a comparison, and the command takes them where they mean something."""

import pytest

from deqlm.cli.main import main
from deqlm.comparison import compare


@pytest.mark.slow
def test_compiled_solves_are_rows_of_a_comparison():
    result = compare(
        ["symmetric:rho=0.5,unknowns=8", "rotation"],
        ["fixed_point", "anderson", "newton"],
        compile={"loop": "python"},
        repeats=1,
        progress=False,
    )
    assert result.solvers == ["fixed_point", "anderson", "newton", "compiled.fixed_point", "compiled.anderson"]
    for problem in result.problems:
        for name in ("fixed_point", "anderson"):
            eager, compiled = problem.entry(name), problem.entry(f"compiled.{name}")
            assert compiled.outcome == eager.outcome
            assert compiled.statuses == eager.statuses
            assert compiled.seconds > 0
    assert "compiled.anderson" in str(result)


@pytest.mark.parametrize("other", [["--gradients"], ["--starts"], ["--suite", "literature"]])
def test_the_option_is_refused_where_it_would_be_ignored(other, capsys):
    assert main(["compare", "--compile", *other]) == 2
    assert "--compile has no meaning here" in capsys.readouterr().err
