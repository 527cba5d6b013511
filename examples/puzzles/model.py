"""One stock transformer layer that solves puzzles by converging, and the models that it is compared with."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deqlm
from deqlm import Solution, Stop
from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import require, whole
from examples.loop import IGNORED
from examples.puzzles.data import Problem

__all__ = ["Output", "PuzzleModel", "Shape", "layer_of"]


def layer_of(width: int, heads: int, hidden: int) -> nn.Module:
    """Return a stock transformer layer and a norm behind it."""
    layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.RMSNorm(width))


@options
class Shape(Options):
    """How large a model is, and how it is trained to be used.

    Args:
        width: features of a cell.
        heads: of the attention; they divide the width.
        hidden: features of the feed-forward part.
        layers: with weights of their own, one after another; 1 is a layer that is used again and again.
        least: fewest evaluations of a training step, >= 1.
        most: most evaluations of a training step; their number is drawn anew for each.
        start: "random" starts every solve at a point of its own, "zero" at zero.

    Raises:
        ValueError: a value that breaks its rule, or several layers that are used more than once.
    """

    width: int = 64
    heads: int = 4
    hidden: int = 128
    layers: int = 1
    least: int = 4
    most: int = 12
    start: Literal["random", "zero"] = "random"

    def __post_init__(self) -> None:
        for name in ("width", "heads", "hidden", "layers", "least"):
            whole(name, getattr(self, name), 1)
        require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of width={self.width}")
        whole("most", self.most, self.least)
        require(self.start in ("random", "zero"), "start", self.start, "'random' or 'zero'")
        once = self.layers == 1 or (self.least, self.most, self.start) == (1, 1, "zero")
        require(once, "layers", self.layers, "1, but with least=1, most=1 and start='zero'")


class Output(NamedTuple):
    """What the model returns.

    Attributes:
        loss: mean over the cells that count; None without labels.
        logits: (B, cells, classes).
        solution: of the solve.
        state: (B, cells, width), where it ended.
    """

    loss: Tensor | None
    logits: Tensor
    solution: Solution | None
    state: Tensor


class PuzzleModel(nn.Module):
    """A puzzle goes in, and the fixed point z = norm(layer(z + u)) is read cell by cell.

    Args:
        problem: says what cells hold and where they are.
        shape: of the layer, and how it is trained.
    """

    def __init__(self, problem: Problem, shape: Shape) -> None:
        super().__init__()
        parts = [layer_of(shape.width, shape.heads, shape.hidden) for _ in range(shape.layers)]
        layer = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
        self.deq = deqlm.DEQ(layer, solver="fixed_point", gradient="unrolled", on_failure="ignore")
        self.shape = shape
        self.content = nn.Embedding(problem.tokens, shape.width)
        self.place = nn.ModuleList(nn.Embedding(count, shape.width) for count in problem.kinds)
        self.head = nn.Linear(shape.width, problem.classes)
        self.places: Tensor
        self.register_buffer("places", torch.tensor(problem.places), persistent=False)

    def inject(self, cells: Tensor) -> Tensor:
        """Return what enters every evaluation, (B, cells, width).

        Args:
            cells: tokens, (B, cells).
        """
        where = sum(embedding(self.places[:, i]) for i, embedding in enumerate(self.place))
        return self.content(cells) + where

    def start(self, u: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return where solves begin: at random points if that is how the model was trained, else at zero."""
        if self.shape.start == "zero":
            return torch.zeros_like(u)
        return torch.randn(u.shape, generator=generator, dtype=u.dtype).to(u.device)

    def forward(
        self,
        cells: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        stop: Stop | None = None,
        start: Tensor | None = None,
    ) -> Output:
        """Return loss and logits.

        Args:
            cells: tokens, (B, cells) int64.
            labels: classes, (B, cells) int64; -100 does not count.
            mask: None; every cell of a puzzle counts.
            stop: when the solve ends; None draws a number of evaluations as in training.
            start: (B, cells, width); None is `start`.

        Raises:
            ValueError: a mask, or cells of another problem.
        """
        require(mask is None, "mask", mask, "None")
        require(cells.shape[1:] == self.places.shape[:1], "cells", tuple(cells.shape), f"(B, {len(self.places)})")
        u = self.inject(cells)
        self.deq.solve = self.deq.solve.replace(stop=self._drawn() if stop is None else stop)
        z, solution = self.deq(u, start=self.start(u) if start is None else start, with_stats=True)
        logits = self.head(z)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        return Output(loss, logits, solution, z)

    def _drawn(self) -> Stop:
        evaluations = int(torch.randint(self.shape.least, self.shape.most + 1, ()))
        return Stop(max_iter=evaluations, rtol=0)
