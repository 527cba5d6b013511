"""What a task gives to the loop."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from deqlm.training import Stage

__all__ = ["IGNORED", "Batch", "Task", "accuracy"]

IGNORED = -100
"""The target of a position that does not count."""


class Batch(NamedTuple):
    """Sequences of one step.

    Attributes:
        ids: (B, L) int64.
        targets: (B, L) int64; -100 does not count.
        mask: (B, L) bool, False at padding; None without padding.
        fresh: False goes on with the batch before, row by row; needs the option ``carry``.
    """

    ids: Tensor
    targets: Tensor
    mask: Tensor | None = None
    fresh: bool = True

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(self.ids.to(device), self.targets.to(device), mask, self.fresh)


class Task(Protocol):
    """Data, accuracy and evaluation of one task."""

    def describe(self) -> dict[str, Any]:
        """Return JSON data that tells this task from another; a checkpoint goes on with an equal one only."""
        ...

    def batch(self, seed: int, step: int, stage: Stage) -> Batch:
        """Return the batch of a step: a function of these three, so that a resumed training sees it again.

        A batch without a target that counts teaches nothing: it counts as a step, and has no part in means and costs.
        """
        ...

    def scores(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return scalars to log, without a graph; "accuracy" is there, and moves the curriculum."""
        ...

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Return JSON data; called in eval mode, without grad, and without effect on the random numbers of training."""
        ...


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the fraction of targets that have the largest logit, a scalar; NaN where no target counts.

    Args:
        logits: (B, L, V).
        targets: (B, L); -100 does not count.
    """
    counts = targets != IGNORED
    return ((logits.argmax(-1) == targets) & counts).sum() / counts.sum()
