"""What is measured of a trained model is what its answers say, by definitions written out here again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deqlm import Stop
from examples.puzzles.data import Puzzles, as_tensors, problem_named
from examples.puzzles.evaluate import Look, boards, breadth, by_budget, by_difficulty, calibration, walk
from examples.puzzles.model import PuzzleModel, Shape

NOBODY: Any = None
"""The model, where `told` answers in its place."""

PROBLEM = problem_named("4x4")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PuzzleModel(PROBLEM, Shape(width=8, heads=2, hidden=16)).eval()


@pytest.fixture
def puzzles():
    return as_tensors(PROBLEM.draw({"test": 6}, 0)["test"])


def told(monkeypatch, looks):
    """Let the model answer what is written here."""
    monkeypatch.setattr("examples.puzzles.evaluate.walk", lambda *args, **kwargs: iter(looks))


def test_a_walk_goes_on_where_it_stood(model, puzzles):
    start = model.start(model.inject(puzzles.cells), torch.Generator().manual_seed(3))
    for look in walk(model, puzzles.cells, (1, 2, 5), seed=3):
        whole = model(puzzles.cells, stop=Stop(max_iter=look.evaluations, rtol=0), start=start)
        assert torch.equal(look.answers, whole.logits.argmax(-1))
        torch.testing.assert_close(look.residual, whole.solution.relative)


def test_accuracy_counts_whole_boards(monkeypatch):
    answers = torch.tensor([[0, 1], [1, 1], [0, 0]])
    puzzles = Puzzles(answers, answers, torch.ones(3))
    said = torch.tensor([[0, 1], [1, 0], [1, 1]])
    told(monkeypatch, [Look(4, said, torch.tensor([0.001, 0.005, 0.5]))])
    (row,) = by_budget(NOBODY, puzzles)
    assert row["exact"] == pytest.approx(1 / 3, abs=1e-4)
    assert row["cells"] == 0.5
    assert row["converged"] == pytest.approx(2 / 3, abs=1e-4)
    assert (row["exact_converged"], row["exact_others"]) == (0.5, 0.0)


def test_calibration_tells_whether_the_residual_ranks(monkeypatch):
    answers = torch.zeros(4, 1)
    said = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    puzzles = Puzzles(answers, answers, torch.ones(4))
    told(monkeypatch, [Look(8, said, torch.tensor([0.1, 0.4, 0.2, 0.3]))])
    found = calibration(NOBODY, puzzles, 8)
    assert found["order"] == 1.0
    assert [group["exact"] for group in found["groups"]] == [1.0, 1.0, 0.0, 0.0]
    told(monkeypatch, [Look(8, said, torch.tensor([0.1, 0.1, 0.1, 0.1]))])
    assert calibration(NOBODY, puzzles, 8)["order"] == 0.5
    told(monkeypatch, [Look(8, answers, torch.tensor([0.1, 0.1, 0.1, 0.1]))])
    assert calibration(NOBODY, puzzles, 8)["order"] is None


def test_difficulty_counts_from_when_an_answer_stays_right(monkeypatch):
    answers = torch.tensor([[1], [1]])
    said = [[0, 1], [1, 1], [0, 1], [1, 0]]
    residuals = [[1.0, 1.0], [1.0, 0.001], [0.001, 1.0], [0.001, 1.0]]
    looks = [
        Look(k + 1, torch.tensor(s)[:, None], torch.tensor(r))
        for k, (s, r) in enumerate(zip(said, residuals, strict=True))
    ]
    told(monkeypatch, looks)
    one, other = by_difficulty(NOBODY, Puzzles(answers, answers, torch.tensor([5, 7])), 4)
    assert (one["rating"], one["settled"], one["evaluations"], one["exact"]) == (5, 4.0, 3.0, 1.0)
    assert (other["rating"], other["settled"], other["evaluations"], other["exact"]) == (7, None, 2.0, 0.0)


def test_breadth_chooses_by_residual_and_by_vote(monkeypatch):
    answers = torch.tensor([[0], [0]])
    runs = iter(
        [
            [Look(8, torch.tensor([[1], [0]]), torch.tensor([0.1, 0.5]))],
            [Look(8, torch.tensor([[0], [1]]), torch.tensor([0.2, 0.1]))],
            [Look(8, torch.tensor([[0], [0]]), torch.tensor([0.3, 0.9]))],
        ]
    )
    monkeypatch.setattr("examples.puzzles.evaluate.walk", lambda *args, **kwargs: iter(next(runs)))
    one, three = breadth(NOBODY, Puzzles(answers, answers, torch.ones(2)), (8,), (1, 3))
    assert (one["mean"], one["least residual"], one["vote"], one["any"]) == (0.5, 0.5, 0.5, 0.5)
    assert three["mean"] == pytest.approx(4 / 6, abs=1e-4)
    assert (three["least residual"], three["vote"], three["any"]) == (0.0, 1.0, 1.0)


def test_equal_seeds_look_the_same(model, puzzles):
    assert by_budget(model, puzzles, (1, 3), seed=2) == by_budget(model, puzzles, (1, 3), seed=2)
    looks = boards(model, puzzles.cells[:1], (1, 2))
    assert [look["evaluations"] for look in looks] == [1, 2]
    assert len(looks[0]["answer"]) == 16
