"""A map inside transforms of torch.func as one map on plain rows: those of all mapped dimensions at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deqlm.wrap.held import Held
from deqlm.wrap.levels import Levels, depth, outside
from deqlm.wrap.rows import RowMap
from deqlm_solvers.core.cost import Count

__all__ = ["Lifted"]


class Lifted:
    """f on all rows that the mapped dimensions and the batch make, (R, N) to (R, N), for whom no transform is open.

    Args:
        f: the map on the rows of one element of the mapped dimensions, (B, N).
        levels: the transforms around it.

    Attributes:
        count: calls and rows, of all elements.
        held: unknowns that are constants of the map, of all rows, or None.
    """

    def __init__(self, f: RowMap, levels: Levels) -> None:
        self.f = f
        self.levels = levels
        self.count = Count()
        self.held: Held | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z), (R, N), with autograd's graph in grad mode.

        Raises:
            RuntimeError: ``z`` belongs to a transform of whoever asks, such as a solver that vectorises products.
        """
        if depth() or forward_ad.unpack_dual(z).tangent is not None:
            raise RuntimeError("a map inside transforms of torch.func takes no further ones")
        self.count.add(z.shape[0])
        with self.levels.again(torch.is_grad_enabled()):
            fz = self.f(self.given(z))
        return self.taken(fz)

    @property
    def rows(self) -> int:
        """R."""
        return math.prod(self.levels.sizes) * self.f.rows.count

    def given(self, rows: Tensor) -> Tensor:
        """Return plain ``rows`` (R, ...) as a tensor (B, ...) of the levels."""
        with outside():
            rows = rows.reshape(*self.levels.sizes, self.f.rows.count, *rows.shape[1:])
        return self.levels.give(rows)

    def taken(self, t: Tensor) -> Tensor:
        """Return a tensor (B, ...) of the levels as plain rows (R, ...)."""
        with outside():
            t = self.levels.take(t)
            return t.reshape(self.rows, *t.shape[len(self.levels.sizes) + 1 :])
