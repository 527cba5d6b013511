"""The user's own map: what the help of `deqlm compare` promises."""

from __future__ import annotations

import pytest
import torch

from deqlm.compare import compare
from deqlm.compare.spec import parse_problem, split_specs

SOURCE = '''
import torch

def make(dtype, batch=5, width=4):
    """My layer."""
    layer = torch.nn.Linear(width, width, dtype=dtype)
    return lambda z: 0.5 * torch.tanh(layer(z)), torch.zeros(batch, width, dtype=dtype)

def module(device, seed):
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh()), torch.zeros(2, 3)

def tree(**settings):
    return lambda z: {"a": 0.5 * z["b"] + 1, "b": 0.25 * z["a"]}, {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}

def wrong():
    return 3
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def run(*problems, **settings):
    return compare(problems, ["anderson"], repeats=1, memory=False, progress=False, **settings)


def test_a_function_in_a_file(file):
    result = run(f"{file}:make:width=6", batch=3)
    (problem,) = result.problems
    assert (problem.title, problem.rows, problem.unknowns) == ("My layer", 3, 6)
    assert problem.entries[0].outcome == "solved"
    assert "does not run in float64" in problem.note


def test_a_module_is_widened_for_the_true_residual(file):
    (problem,) = run(f"{file}:module").problems
    assert problem.note == ""
    assert problem.entries[0].outcome == "solved"


def test_a_tree_is_solved(file):
    (problem,) = run(f"{file}:tree", dtype="float64").problems
    assert (problem.rows, problem.unknowns, problem.entries[0].outcome) == (2, 6, "solved")


def test_the_same_seed_gives_the_same_weights(file):
    residuals = [run(f"{file}:make", seed=seed)[f"{file}:make"].entries[0].residual for seed in (1, 1, 2)]
    assert residuals[0] == residuals[1] != residuals[2]


def test_a_module_on_the_path_and_from_here(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert run("mine:make")["mine:make"].entries[0].outcome == "solved"


def test_a_factory_that_returns_something_else(file):
    (problem,) = run(f"{file}:wrong").problems
    assert "a pair (f, z0)" in problem.message


def test_a_function_given_as_such():
    def halve(dtype):
        return (lambda z: 0.5 * z + 1), torch.zeros(2, 2, dtype=dtype)

    assert run(halve)["halve"].entries[0].outcome == "solved"


def test_an_option_that_the_factory_does_not_take_names_the_nearest(file):
    with pytest.raises(TypeError, match="unknown option 'widht': did you mean 'width'"):
        parse_problem(f"{file}:make:widht=8")
    assert parse_problem(f"{file}:tree:anything=1")


def test_an_option_comes_before_what_the_comparison_offers(file):
    assert run(f"{file}:make:batch=7")[f"{file}:make:batch=7"].rows == 7


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("nowhere:make", "no module 'nowhere'"),
        ("nothing.py:make", "an existing file"),
        ("{file}", "name a function in it: .*mine.py:make"),
        ("{file}:mak", "did you mean 'make'"),
        ("{file}:", "module:callable"),
    ],
)
def test_what_cannot_be_found_is_named(file, spec, text):
    with pytest.raises(ValueError, match=text):
        parse_problem(spec.format(file=file))


def test_lists_keep_options_with_their_name():
    assert split_specs("a, b:x=1,y=2 ,c.d") == ["a", "b:x=1,y=2", "c.d"]
    assert split_specs("mine.py:make:width=3,depth=2,tanh") == ["mine.py:make:width=3,depth=2", "tanh"]
    with pytest.raises(ValueError, match="stands before any name"):
        split_specs("x=1,a")
    with pytest.raises(ValueError, match="an empty name"):
        split_specs("a,,b")
