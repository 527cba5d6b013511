"""The next byte of a text as a task of the training loop."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.models import ImplicitLM
from deqlm.training import Stage
from examples.language_model.corpus import Corpus
from examples.loop import Batch, accuracy

__all__ = ["NextByte"]

HELD_OUT = 32
"""Windows on which a model is evaluated."""


class NextByte:
    """Predict the next token of a text; a `examples.loop.task.Task`.

    Args:
        corpus: the text.
        length: tokens per window.
    """

    def __init__(self, corpus: Corpus, length: int) -> None:
        self.corpus, self.length = corpus, length
        held_out = corpus.windows(most=HELD_OUT, length=length)
        self.held_out = Batch(held_out, held_out)

    def describe(self) -> dict[str, Any]:
        """Return what tells this text from another."""
        ids = self.corpus.train
        mixed = int((ids * torch.arange(1, len(ids) + 1)).sum())
        return {"task": "next byte", "tokens": len(ids), "checksum": mixed, "length": self.length}

    def batch(self, seed: int, step: int, stage: Stage) -> Batch:
        """Return random windows; labels are the ids, which the model shifts."""
        ids = self.corpus.batch(seed, step, size=stage.rows, length=stage.length)
        return Batch(ids, ids)

    def scores(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy of the next byte."""
        return {"accuracy": accuracy(logits[:, :-1], batch.targets[:, 1:])}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Return bits per byte on the held-out windows, and the evaluations of f per window, at most and on average."""
        solves = isinstance(model, ImplicitLM) and model.backbone.implicit
        quiet = {"on_failure": "ignore"} if solves else {}  # told as "converged"
        output = model(self.held_out.ids, labels=self.held_out.targets, **quiet)
        result = {"bits_per_byte": float(output.loss) / math.log(2)}
        if output.solution is not None:
            steps = output.solution.steps.double()
            converged = float(output.solution.converged.double().mean())
            result |= {"steps": float(steps.mean()), "most_steps": float(steps.max()), "converged": converged}
        return result
