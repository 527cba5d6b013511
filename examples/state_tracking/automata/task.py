"""A contract as a task of the training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deqlm.training import Stage
from deqlm_solvers.core.checks import require
from examples.loop import Batch, accuracy
from examples.state_tracking.automata.contract import Contract

__all__ = ["Automaton"]


class Automaton:
    """Sequences of one contract, drawn on the fly, all of a step equally long.

    Args:
        contract: what is drawn.
        mixed: share of the steps whose length is not the stage's but drawn evenly between the shortest trained one and
            the stage's. So the one label of a sequence, at its last token, has stood behind every prefix in the end.
    """

    def __init__(self, contract: Contract, *, mixed: float = 0.5) -> None:
        self.contract, self.mixed = contract, mixed

    def describe(self) -> dict[str, Any]:
        return {"task": "automata", "contract": self.contract.to_dict(), "mixed": self.mixed}

    def batch(self, seed: int, step: int, stage: Stage) -> Batch:
        random = np.random.default_rng([seed, step])
        length = stage.length
        if random.random() < self.mixed:
            length = int(random.integers(min(self.contract.trained[0], length), length + 1))
        # as many tokens as the stage has, and at most four times its sequences
        rows = min(stage.rows * stage.length // length, 4 * stage.rows)
        ids, answers = self.contract.draw(rows, length, seed=seed, step=step)
        return Batch(ids, self.contract.labels(ids, answers))

    def scores(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"accuracy": accuracy(logits, batch.targets)}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        device = next(model.parameters()).device
        ids, answers = self.contract.draw(256, self.contract.trained[1], split="valid")
        backbone = getattr(model, "backbone", None)
        # early in training solves fail, and accuracy says so
        given = {"on_failure": "ignore"} if backbone is not None and backbone.implicit else {}
        labels = self.contract.labels(ids, answers).to(device)
        return {"valid": float(accuracy(model(ids.to(device), **given).logits, labels))}

    def check_model(self, model: nn.Module) -> None:
        """Raise unless the model has a row of its embedding for every token and answer.

        Raises:
            ValueError: it has fewer.
        """
        embedding = model.embedding
        assert isinstance(embedding, torch.nn.Embedding)
        rows, needed = embedding.num_embeddings, self.contract.rows
        require(rows >= needed, "rows of the embedding", rows, f">= {needed} for {self.contract.name}")
