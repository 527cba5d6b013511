"""The model is the stock layer and nothing else; what it does between evaluations can be cut anywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deqlm import Stop
from examples.puzzles.data import problem_named
from examples.puzzles.model import PuzzleModel, Shape, layer_of

SMALL = {"width": 8, "heads": 2, "hidden": 16}
PROBLEM = problem_named("4x4")


def made(**more):
    torch.manual_seed(0)
    return PuzzleModel(PROBLEM, Shape(**{**SMALL, **more}))


def draw(count=3):
    puzzles = PROBLEM.draw({"train": count}, 0)["train"]
    return torch.tensor([p.cells for p in puzzles]), torch.tensor([p.answer for p in puzzles])


def test_it_iterates_the_stock_layer_on_state_and_input():
    model = made()
    cells, _ = draw()
    u, z = model.inject(cells), torch.randn(3, 16, 8)
    by_hand = z
    for _ in range(3):
        by_hand = model.deq.layer(by_hand + u)
    output = model(cells, stop=Stop(max_iter=3, rtol=0), start=z)
    torch.testing.assert_close(output.state, by_hand)
    torch.testing.assert_close(output.logits, model.head(by_hand))
    stock: Any = model.deq.layer
    assert isinstance(stock[0], torch.nn.TransformerEncoderLayer)


def test_a_layer_that_is_used_again_and_again_has_no_more_parameters():
    counts = {sum(p.numel() for p in made(most=most).parameters()) for most in (4, 64)}
    assert len(counts) == 1


def test_a_training_step_draws_its_evaluations():
    model = made(least=2, most=5)
    cells, answers = draw()
    counts = {int(model(cells, labels=answers).solution.steps[0]) for _ in range(40)}
    assert counts == {2, 3, 4, 5}


def test_the_loss_reaches_every_parameter():
    model = made()
    cells, answers = draw()
    model(cells, labels=answers).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_starts_are_random_or_zero_and_repeat_with_their_generator():
    u = torch.zeros(2, 16, 8)
    one, again = (made().start(u, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, again)
    assert one.std() > 0.5
    assert not made(start="zero").start(u).any()


def test_several_layers_stand_one_after_another():
    model = made(layers=2, least=1, most=1, start="zero")
    cells, _ = draw()
    u = model.inject(cells)
    both: Any = model.deq.layer
    first, second = both
    torch.testing.assert_close(model(cells, stop=Stop(max_iter=1, rtol=0)).state, second(first(u)))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"heads": 3},
        {"least": 5, "most": 4},
        {"start": "one"},
        {"layers": 2},
        {"hidden": -1},
        {"most": -3},
    ],
)
def test_a_shape_that_makes_no_sense_is_named(change):
    with pytest.raises(ValueError, match="must be"):
        Shape(**{**SMALL, **change})


def test_cells_of_another_problem_are_named():
    with pytest.raises(ValueError, match=r"cells must be \(B, 16\), got \(2, 36\)"):
        made()(torch.zeros(2, 36, dtype=torch.int64))
    with pytest.raises(ValueError, match="mask must be None"):
        made()(torch.zeros(2, 16, dtype=torch.int64), mask=torch.ones(2, 16))


def test_the_norm_stands_behind_the_layer():
    z = layer_of(8, 2, 16)(torch.randn(2, 4, 8))
    torch.testing.assert_close(z.square().mean(-1), torch.ones(2, 4), atol=1e-3, rtol=0)
