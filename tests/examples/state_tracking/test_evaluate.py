"""What is measured of a model, against models whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deqlm.models import LMOptions, Mamba2Options
from deqlm.sequence.modes import Chunked, Sequential, Simultaneous
from examples.state_tracking.data import word_problem
from examples.state_tracking.evaluate import agreement, by_budget, frontier, predict, summary
from examples.state_tracking.recipe import Test


class Oracle(nn.Module):
    """Knows every product, but for those at position ``wrong``, where it says the next element."""

    def __init__(self, problem, wrong=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.backbone = SimpleNamespace(implicit=False)
        self.problem, self.wrong = problem, wrong

    def forward(self, ids):
        answers = self.problem.targets(ids)
        if self.wrong is not None:
            answers[:, self.wrong] = (answers[:, self.wrong] + 1) % len(self.problem)
        logits = nn.functional.one_hot(answers, len(self.problem)).float()
        return SimpleNamespace(logits=logits, solution=None)


@pytest.fixture(scope="module")
def problem():
    return word_problem("S3")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    mixer = Mamba2Options(d_state=4, headdim=8)
    sizes = {"vocab_size": 6, "d_model": 8, "n_layer": 1, "weight_norm": False}
    made = LMOptions(**sizes, mixer=mixer, labels="aligned", max_iter=100).make().eval()
    with torch.no_grad():  # a large input and a large answer to it make the normalised map contract
        made.backbone.injection.weight.mul_(10)
        made.backbone.layers[0].mixer.out_proj.weight.mul_(20)
    return made


def test_accuracies_are_those_of_the_answers(problem):
    test = Test(length=20, rows=6, batch=4)
    perfect = summary(predict(Oracle(problem), problem, test), test)
    assert (perfect["last"], perfect["last10"], perfect["mean"]) == (1.0, 1.0, 1.0)
    wrong = summary(predict(Oracle(problem, wrong=-1), problem, test), test)
    assert wrong["last"] == 0.0
    assert wrong["last10"] == pytest.approx(0.9)
    assert wrong["mean"] == pytest.approx(19 / 20)
    assert wrong["accuracy"] == [1.0] * 19 + [0.0]
    assert "token_steps" not in wrong


def test_the_sequences_depend_on_the_seed_alone(problem):
    one, again, other = (
        predict(Oracle(problem), problem, Test(length=8, rows=4, seed=seed)).predicted for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_easy_and_hard_tokens_are_told_apart(problem, model):
    test = Test(length=16, rows=8, p=0.75, mode=Sequential())
    outcome = predict(model, problem, test)
    assert 0.6 < 1 - outcome.hard.double().mean() < 0.95
    by_token = summary(outcome, test)["by_token"]
    steps = outcome.token_steps.double()
    assert by_token["hard"]["token_steps"] == pytest.approx(steps[outcome.hard].mean().item(), abs=1e-3)
    assert by_token["easy"]["accuracy"] == pytest.approx(
        outcome.correct[~outcome.hard].double().mean().item(), abs=1e-3
    )
    none = summary(predict(model, problem, test.replace(p=1.0)), test.replace(p=1.0))
    assert none["by_token"]["hard"] == {"accuracy": None, "token_steps": None}


def test_modes_agree_where_they_converge_and_costs_are_counted_in_tokens(problem, model):
    found = {}
    for mode in (Simultaneous(), Chunked(4), Sequential()):
        test = Test(length=12, rows=5, batch=5, mode=mode, rtol=1e-4, max_iter=400)
        found[mode.name] = predict(model, problem, test), test
    reference, _ = found["sequential"]
    for outcome, test in found.values():
        assert outcome.converged == 1.0
        assert agreement(outcome, reference) == 1.0
        data = summary(outcome, test)
        assert data["token_evaluations"] == outcome.cost.token_evaluations > 0
        assert data["evaluations_per_token"] == pytest.approx(outcome.cost.token_evaluations / 60, abs=0.01)
        assert len(data["token_steps"]) == len(data["accuracy"]) == 12
    whole, _ = found["simultaneous"]
    assert whole.cost.token_evaluations % 12 == 0


def test_agreement_is_a_fraction_of_tokens(problem):
    test = Test(length=5, rows=3)
    right, wrong = (predict(Oracle(problem, wrong=w), problem, test) for w in (None, 2))
    assert agreement(right, wrong) == pytest.approx(0.8)


def test_a_large_budget_gives_what_a_converged_solve_gives(problem, model):
    test = Test(length=8, rows=16, mode=Simultaneous(), rtol=1e-5, max_iter=400)
    solved = summary(predict(model, problem, test), test)
    few, many = by_budget(model, problem, length=8, budgets=(1, 200), rows=16)
    assert (few["budget"], many["budget"]) == (1, 200)
    assert many["mean"] == pytest.approx(solved["mean"])


def test_the_frontier_ends_with_everything_settled(problem, model):
    data = frontier(model, problem, length=10, iterations=60)
    assert len(data["residual"]) == 60
    assert {len(line) for line in data["residual"]} == {10}
    assert data["settled"][-1] == 10
    assert data["settled"] == sorted(data["settled"])
    assert data["settled"][0] == 0
    table = torch.tensor(data["residual"])
    first = data["settled"].index(10)
    assert (table[first:] <= torch.tensor(0.05).log10() + 0.01).all()


def test_a_start_token_is_solved_with_the_others_and_not_counted(problem):
    torch.manual_seed(0)
    mixer = Mamba2Options(d_state=4, headdim=8)
    sizes = {"vocab_size": 7, "d_model": 8, "n_layer": 1, "weight_norm": False}
    behind = LMOptions(**sizes, mixer=mixer, labels="aligned").make().eval()
    test = Test(length=5, rows=3, mode=Simultaneous(), rtol=1e-6, max_iter=200)
    solved = summary(predict(behind, problem, test, start=True), test)
    (many,) = by_budget(behind, problem, length=5, budgets=(200,), rows=3, start=True)
    assert many["mean"] == pytest.approx(solved["mean"])
    data = frontier(behind, problem, length=5, iterations=60, start=True)
    assert {len(line) for line in data["residual"]} == {5}
    assert len(data["hard"]) == 5
    # the token in front is no token of the problem, and the others see it
    assert data["residual"][3] != frontier(behind, problem, length=5, iterations=60)["residual"][3]
