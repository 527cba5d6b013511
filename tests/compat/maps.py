"""Small maps in float64 for the tests of the names of torchdeq."""

from __future__ import annotations

import torch
from torch import Tensor, nn

F64 = torch.float64


class Cell(nn.Module):
    """A contraction of one tensor, or of two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6, dtype=F64), nn.Linear(6, 6, dtype=F64)
        with torch.no_grad():
            for layer in (self.a, self.b):
                layer.weight.mul_(0.6)
        self.x = torch.randn(4, 6, dtype=F64)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.a(z) + self.x)

    def two(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(0.5 * self.a(z) + 0.3 * w + self.x), torch.tanh(0.5 * self.b(w) + 0.2 * z)


def start() -> Tensor:
    return torch.zeros(4, 6, dtype=F64)


def flat(states: list) -> list[Tensor]:
    """Return the tensors of a list of states, each a tensor or a list of them."""
    return [t for state in states for t in (state if isinstance(state, list | tuple) else [state])]
