"""A task and two models that train in a second: the parity of the bits so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deqlm.models import AttentionOptions, ImplicitLM, LMOptions
from deqlm.models.failing import LMFailures
from deqlm.models.lm import LMOutput
from deqlm.training import Curriculum, Stage
from examples.loop import Batch, LoopOptions, accuracy

PLAN = Curriculum((Stage(length=3, rows=16, until=0.6, window=3, steps=9), Stage(length=6, rows=8)))
OPTIONS = LoopOptions(steps=24, curriculum=PLAN, lr=0.01, warm_up=3, log_every=5, checkpoint_every=4, keep=99)


class Parity:
    """Bits and the parity of the bits so far."""

    def __init__(self, **more: Any) -> None:
        self.more = more

    def describe(self) -> dict[str, Any]:
        return {"name": "parity", **self.more}

    def batch(self, seed: int, step: int, stage: Stage) -> Batch:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        ids = torch.randint(2, (stage.rows, stage.length), generator=draw)
        return Batch(ids, ids.cumsum(1) % 2)

    def scores(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"accuracy": accuracy(logits, batch.targets)}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        batch = self.batch(10**6, 0, Stage(length=12, rows=16))
        return {"accuracy": float(accuracy(model(batch.ids).logits, batch.targets)), "training": model.training}


class Recurrent(nn.Module):
    """A small GRU with dropout, so that random numbers matter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(2, 8), nn.Dropout(0.1)
        self.layer, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, ids: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> LMOutput:
        state = self.layer(self.dropout(self.embedding(ids)))[0]
        logits = self.head(state)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return LMOutput(logits, loss, None, state, None)


def implicit(**changes: Any) -> ImplicitLM:
    """Return a tiny implicit transformer with seeded weights, which says nothing of its solves."""
    torch.manual_seed(0)
    few = {} if changes.get("implicit") is False else {"max_iter": 6, "eval_max_iter": 6}
    options = LMOptions(vocab_size=2, d_model=8, n_layer=1, mixer=AttentionOptions(n_head=1), labels="aligned")
    model = options.replace(**{**few, **changes}).make()
    model.failures = LMFailures("ignore")
    return model


def recurrent() -> Recurrent:
    """Return the GRU with seeded weights."""
    torch.manual_seed(0)
    return Recurrent()
