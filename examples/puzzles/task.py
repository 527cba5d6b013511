"""Puzzles as a task of the training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deqlm import Stop
from deqlm.training import Stage
from examples.loop import Batch, accuracy
from examples.puzzles.data import Draw, Problem, Puzzles
from examples.puzzles.model import PuzzleModel

__all__ = ["PuzzleTask", "exact"]

WATCHED = 100
"""Puzzles of validation that an evaluation during training looks at."""


def exact(logits: Tensor, answers: Tensor) -> Tensor:
    """Return which rows are right in every cell, (B,) bool."""
    return (logits.argmax(-1) == answers).all(dim=1)


class PuzzleTask:
    """Puzzles of training under random symmetries; the accuracy is the share of puzzles that are right in every cell.

    Args:
        problem: of the puzzles.
        draw: which they are, for the records.
        train: to learn from.
        valid: to look at while a model trains.
    """

    def __init__(self, problem: Problem, draw: Draw, train: Puzzles, valid: Puzzles) -> None:
        self.problem, self.draw, self.train, self.valid = problem, draw, train, valid

    def describe(self) -> dict[str, Any]:
        return {"task": "puzzles", "draw": self.draw.to_dict()}

    def batch(self, seed: int, step: int, stage: Stage) -> Batch:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        which = torch.randint(len(self.train.cells), (stage.rows,), generator=generator)
        return Batch(*self.problem.shuffled(self.train.cells[which], self.train.answers[which], generator))

    def scores(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        right = exact(logits, batch.targets).double().mean()
        return {"accuracy": right, "cell_accuracy": accuracy(logits, batch.targets)}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        assert isinstance(model, PuzzleModel)
        device = model.places.device
        cells, answers = self.valid.cells[:WATCHED].to(device), self.valid.answers[:WATCHED].to(device)
        most = model.shape.most
        found = {}
        for evaluations in (most, 4 * most):
            logits = model(cells, stop=Stop(max_iter=evaluations, rtol=0)).logits
            found[f"exact_at_{evaluations}"] = float(exact(logits, answers).double().mean())
        return found
