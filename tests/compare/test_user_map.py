"""The user's own map: what the help of `deqlm compare` promises."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import deqlm
from deqlm import DEQ
from deqlm.comparison import UserProblem, compare, compare_gradients
from deqlm.comparison.problems.named import to_problem
from deqlm.comparison.spec import split_specs
from deqlm.layers import Attention, Block
from deqlm.models import Backbone, ImplicitLM
from deqlm.wrap.inject import Inject

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
        to_problem(f"{file}:make:widht=8")
    assert to_problem(f"{file}:tree:anything=1")


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
        to_problem(spec.format(file=file))


def test_lists_keep_options_with_their_name():
    assert split_specs("a, b:x=1,y=2 ,c.d") == ["a", "b:x=1,y=2", "c.d"]
    assert split_specs("mine.py:make:width=3,depth=2,tanh") == ["mine.py:make:width=3,depth=2", "tanh"]
    with pytest.raises(ValueError, match="stands before any name"):
        split_specs("x=1,a")
    with pytest.raises(ValueError, match="an empty name"):
        split_specs("a,,b")


def layer(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()).to(dtype)


def two_arguments(z, u):
    return torch.tanh(0.5 * z + u)


class TwoArguments(torch.nn.Module):
    def forward(self, z, u):
        return two_arguments(z, u)


X = 3 * torch.linspace(-1, 1, 20).reshape(5, 4)
START = torch.full((4,), 0.25)


def at(f, u):
    return lambda z: f(z + u)


DEQS = {
    "add": (lambda: (DEQ(layer()), X), lambda: (at(layer(), X), torch.zeros(5, 4))),
    "argument": (
        lambda: (DEQ(two_arguments, inject="argument"), X),
        lambda: (lambda z: two_arguments(z, X), torch.zeros(5, 4)),
    ),
    "projected": (
        lambda: (DEQ(layer(), inject=layer()), X),
        lambda: (at(layer(), layer()(X)), torch.zeros(5, 4)),
    ),
    "start": (
        lambda: (DEQ(layer(), start=START, solver="fixed_point"), X),
        lambda: (at(layer(), X), START.expand(5, 4)),
    ),
    "one problem": (
        lambda: (DEQ(torch.tanh, batch_dims=0, inject=Scaled()), X),
        lambda: (lambda z: torch.tanh(0.5 * z + X.reshape(1, 20)), torch.zeros(1, 20)),
    ),
    "tree": (
        lambda: (DEQ(lambda z: {"a": 0.5 * torch.cos(z["b"]), "b": z["a"]}), {"a": X, "b": X[:, :2].repeat(1, 2)}),
        lambda: (
            lambda z: {"a": 0.5 * torch.cos(z["b"] + X[:, :2].repeat(1, 2)), "b": z["a"] + X},
            {"a": torch.zeros(5, 4), "b": torch.zeros(5, 4)},
        ),
    ),
}


class Scaled(Inject):
    def join(self, layer, z, u, args, kwargs):
        return layer(0.5 * z + u)


@pytest.mark.parametrize("name", DEQS)
def test_a_deq_is_compared_on_its_own_equation(name):
    deq, plain = (run(UserProblem(make=make)).problems[0] for make in DEQS[name])
    assert (deq.rows, deq.unknowns) == (plain.rows, plain.unknowns)
    (got,), (want,) = deq.entries, plain.entries
    assert got.outcome == want.outcome == "solved"
    assert got.evaluations == want.evaluations > 3
    assert "is a DEQ: solved is its equation" in deq.note


def test_a_deq_is_widened_with_its_input():
    (problem,) = run(UserProblem(make=lambda: (DEQ(layer()), X))).problems
    assert "float64" not in problem.note
    assert problem.entries[0].residual < 2e-5


def test_gradients_of_a_deq_reach_layer_and_injection():
    make = lambda: (DEQ(layer(), inject=torch.nn.Linear(4, 4)), X)  # noqa: E731
    result = compare_gradients(UserProblem(make=make), "implicit,phantom", repeats=1, progress=False)
    (problem,) = result.problems
    assert problem.parameters == 2 * 20
    assert problem.entries[0].error < 1e-3


def lm():
    return ImplicitLM(Backbone([Block(Attention(8, n_head=2))]), vocab_size=11)


class Wrapped(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: DEQ(layer()),
            "must be a pair (f, z0) with a callable f, or (deq, x) with a DEQ and its input, got 'DEQ'",
        ),
        (lambda: (DEQ(layer()), X, X), "got ['DEQ', 'Tensor', 'Tensor']"),
        (lambda: (torch.nn.Sequential(DEQ(layer()), layer()), X), "got Sequential with a DEQ inside, which solves"),
        (
            lambda: (DEQ(layer()).forward, X),
            "got DEQ, which solves at every evaluation: return (the DEQ itself, its x)",
        ),
        (lambda: (lm(), torch.ones(2, 3, dtype=torch.int64)), "got ImplicitLM, which solves at every evaluation"),
        (lambda: (Wrapped(lm()), torch.ones(2, 3, dtype=torch.int64)), "of its backbone, see deqlm.models.Backbone"),
        (lambda: (TwoArguments(), X), "got 'f(z, u)'"),
        (lambda: (two_arguments, X), "return (deqlm.DEQ(layer, inject='argument'), x)"),
        (lambda: (DEQ(layer()), None), "x must be a tensor or a tree of tensors, got NoneType"),
        (lambda: (DEQ(two_arguments), X), "missing 1 required positional argument: 'u'"),
    ],
)
def test_what_is_no_equation_is_refused(make, said):
    (problem,) = run(UserProblem(make=make)).problems
    assert not problem.entries
    assert said in problem.message


def test_a_function_that_solves_at_every_evaluation_is_taken_as_it_is():
    deq = DEQ(layer())
    (problem,) = run(UserProblem(make=lambda: (lambda z: 0.5 * deq(z), X))).problems
    assert problem.entries[0].ran


def transformer(**settings):
    """A layer that draws noise in train()."""
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **settings)


@pytest.mark.parametrize("training", [True, False])
def test_solvers_are_compared_on_the_deq_that_is_at_hand(training):
    deq = deqlm.DEQ(transformer()).train(training)
    x = torch.randn(2, 3, 8)
    result = deqlm.compare(deq, x, "anderson,broyden", repeats=1, progress=False)
    (problem,) = result.problems
    assert (problem.label, problem.rows, problem.unknowns) == ("DEQ(TransformerEncoderLayer)", 2, 24)
    assert [entry.outcome for entry in problem.entries] == ["solved", "solved"]
    assert "changes from call to call" not in problem.note


def test_a_map_in_double_is_compared_in_double():
    result = deqlm.compare(torch.cos, torch.zeros(3, 2, dtype=torch.float64), "fixed_point", repeats=1, progress=False)
    assert (result.settings["dtype"], result.problems[0].label, result.problems[0].tol) == ("float64", "cos", 1e-10)
    assert result.problems[0].entries[0].outcome == "solved"


@pytest.mark.parametrize(
    ("f", "z0", "settings", "text"),
    [
        (3, torch.zeros(2, 2), {}, "f must be a map or a DEQ, got int"),
        (torch.cos, "zeros", {}, "z0 must hold floating point tensors, got str"),
        (torch.cos, torch.zeros(2, 2, dtype=torch.long), {}, "z0 must hold floating point tensors, got Tensor"),
        (torch.cos, torch.zeros(3), {}, "batch_dims must be given for a 1-d z0"),
        (lambda z, x: z, torch.zeros(2, 2), {}, "must be a map"),
        (torch.cos, torch.zeros(2, 2), {"batch": 3}, "batch has no meaning for a map of your own"),
        (torch.cos, torch.zeros(2, 2), {"repeat": 3}, "did you mean 'repeats'"),
    ],
)
def test_what_cannot_be_compared_is_refused(f, z0, settings, text):
    with pytest.raises((TypeError, ValueError), match=re.escape(text)):
        deqlm.compare(f, z0, "anderson", **settings)
