"""Maps whose rows need different solvers, as test data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

F64 = torch.float64
GAIN = torch.tensor([[0.5], [-3.0], [0.8], [-5.0], [torch.nan]], dtype=F64)


def affine(gain: Tensor) -> Callable[[Tensor], Tensor]:
    """Rows gain * z + 1: plain iteration solves those below 1, Anderson those below -1 too."""
    return lambda z: gain.to(z) * z + 1


class Selectable:
    """A map of per-row gains that can leave rows out, and remembers how many rows every call had."""

    def __init__(self, gain: Tensor, seen: list[int] | None = None) -> None:
        self.gain = gain
        self.seen: list[int] = [] if seen is None else seen

    def __call__(self, z: Tensor) -> Tensor:
        self.seen.append(z.shape[0])
        return self.gain * z + 1

    def narrow(self, rows: Tensor) -> Selectable:
        return Selectable(self.gain[rows], self.seen)
