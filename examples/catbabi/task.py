"""CatbAbI as a task of the training loop."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.training import Stage
from examples.catbabi.data import PAD, Corpus, Stories, Windows
from examples.catbabi.evaluate import score
from examples.loop import Batch, accuracy

__all__ = ["CatbAbI"]


class CatbAbI:
    """Windows of the training stories; the accuracy is that of the answers, in mode "lm" of all tokens.

    Args:
        corpus: with the splits "train" and, to be looked at during training, "valid".
        mode: "qm" or "lm", see `Windows`.
        carried: likewise.
        openings: cut each story to what fits a window of the stage, see `Stories.openings`.
        watched: batches of validation stories that every evaluation during training looks at; 0 looks at none.
    """

    def __init__(
        self, corpus: Corpus, *, mode: str = "qm", carried: bool = False, openings: bool = False, watched: int = 0
    ) -> None:
        self.corpus, self.mode, self.carried, self.watched = corpus, mode, carried, watched
        self.openings = openings
        self._windows: Windows | None = None

    def describe(self) -> dict[str, Any]:
        stories = self.corpus.splits["train"]
        return {
            "task": "catbabi",
            "mode": self.mode,
            "carried": self.carried,
            "openings": self.openings,
            "stories": {str(task): count.stories for task, count in stories.counts().items()},
            "words": len(self.corpus.vocabulary),
            "tokens": hashlib.sha256(stories.tokens.tobytes()).hexdigest()[:16],
            "vocabulary": hashlib.sha256("\n".join(self.corpus.vocabulary.names).encode()).hexdigest()[:16],
        }

    def batch(self, seed: int, step: int, stage: Stage) -> Batch:
        cut = self._laid_out(seed, stage).batch_at(step)
        return Batch(cut.inputs, cut.targets, cut.inputs != PAD, cut.fresh)

    def scores(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"accuracy": accuracy(logits, batch.targets)}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        if self._windows is None or not self.watched or "valid" not in self.corpus.splits:
            return {}
        rows, length = self._windows.batch, self._windows.length
        valid = self._stories("valid", length)
        found = score(model, valid, rows=rows, length=length, carried=self.carried, batches=self.watched)
        return {"accuracy": found["accuracy"], **{f"task {task}": t["accuracy"] for task, t in found["tasks"].items()}}

    def check_model(self, model: nn.Module) -> None:
        """Raise unless the model has a row of its embedding for every word, and no other.

        Raises:
            ValueError: it has more or fewer.
        """
        embedding = model.embedding
        assert isinstance(embedding, torch.nn.Embedding)
        self.corpus.vocabulary.check_model(embedding.num_embeddings)

    def _laid_out(self, seed: int, stage: Stage) -> Windows:
        held = self._windows
        if held is None or (held.seed, held.batch, held.length) != (seed, stage.rows, stage.length):
            given = {"batch": stage.rows, "length": stage.length, "mode": self.mode, "carried": self.carried}
            held = Windows(stories=self._stories("train", stage.length), seed=seed, **given)
            self._windows = held
        return held

    def _stories(self, split: str, length: int) -> Stories:
        stories = self.corpus.splits[split]
        return stories.openings(length) if self.openings else stories
