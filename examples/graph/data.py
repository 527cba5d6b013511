"""Directed chains: the label stands on the first node, all others are blank, and it is asked for on the last one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLASSES = 4


@dataclass(frozen=True, eq=False)
class Graph:
    """Edges that all rows of a batch share.

    Args:
        source: node that sends, (E,), int64.
        target: node that receives, (E,), int64.
        weight: of each message, (E,).
    """

    source: Tensor
    target: Tensor
    weight: Tensor

    def gather(self, z: Tensor) -> Tensor:
        """Return for every node the weighted sum of what it receives; (B, nodes, D) both."""
        return torch.zeros_like(z).index_add(1, self.target, self.weight[:, None] * z[:, self.source])


def normalized(source: Tensor, target: Tensor, nodes: int) -> Graph:
    """Return a graph whose adjacency matrix D_in^(-1/2) A D_out^(-1/2) has no singular value above 1."""
    leaving = torch.bincount(source, minlength=nodes)[source]
    entering = torch.bincount(target, minlength=nodes)[target]
    return Graph(source, target, (leaving * entering).rsqrt())


def chain(nodes: int) -> Graph:
    """Return the chain 0 -> 1 -> ... -> nodes - 1."""
    first = torch.arange(nodes - 1)
    return normalized(first, first + 1, nodes)


def labelled_chains(batch: int, nodes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return features (B, nodes, CLASSES), one-hot on the first node and 0 elsewhere, and labels (B,)."""
    label = torch.randint(CLASSES, (batch,), generator=generator)
    x = torch.zeros(batch, nodes, CLASSES)
    x[torch.arange(batch), 0, label] = 1
    return x, label
