"""State tracking as a task of the training loop."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqlm.training import Stage
from examples.loop import IGNORED, Batch, accuracy
from examples.state_tracking.data import WordProblem

__all__ = ["StateTracking", "started"]


def started(inputs: Tensor, problem: WordProblem) -> Tensor:
    """Return (B, 1 + L) int64: ``inputs`` behind the start token, the first that the problem does not use."""
    return F.pad(inputs, (1, 0), value=len(problem))


class StateTracking:
    """Sequences of one word problem, drawn on the fly; the accuracy that moves the curriculum is the last token's.

    Args:
        problem: groups and monoids; the share of easy tokens is that of the stage.
        watched: (length, p) pairs that every evaluation during training looks at; none costs nothing.
        rows: sequences of such an evaluation.
        start: put a start token before every sequence, as `examples.state_tracking.recipe.Recipe` explains.
    """

    def __init__(
        self,
        problem: WordProblem,
        *,
        watched: tuple[tuple[int, float], ...] = (),
        rows: int = 128,
        start: bool = False,
    ) -> None:
        self.problem, self.watched, self.rows, self.start = problem, watched, rows, start

    def describe(self) -> dict[str, Any]:
        return {"task": "state_tracking", "problem": self.problem.name, **({"start": True} if self.start else {})}

    def batch(self, seed: int, step: int, stage: Stage) -> Batch:
        words = self.problem.with_p(stage.p).draw(stage.rows, stage.length, seed=seed, step=step)
        if not self.start:
            return Batch(words.inputs, words.targets)
        return Batch(started(words.inputs, self.problem), F.pad(words.targets, (1, 0), value=IGNORED))

    def scores(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        last = accuracy(logits[:, -1:], batch.targets[:, -1:])
        return {"accuracy": last, "token_accuracy": accuracy(logits, batch.targets)}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        device = next(model.parameters()).device
        found = {}
        for length, p in self.watched:
            words = self.problem.with_p(p).draw(self.rows, length, split="valid")
            ids = started(words.inputs, self.problem) if self.start else words.inputs
            logits = model(ids.to(device)).logits
            targets = words.targets.to(device)
            found[f"last10_L{length}_p{p:g}"] = float(accuracy(logits[:, -10:], targets[:, -10:]))
        return found

    def check_model(self, model: nn.Module) -> None:
        """Raise unless the model has a row of its embedding for every token.

        Raises:
            ValueError: it has fewer.
        """
        embedding = model.embedding
        assert isinstance(embedding, torch.nn.Embedding)
        self.problem.vocabulary.check_model(embedding.num_embeddings, padded=True)
