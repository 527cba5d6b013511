"""(I - A)^-1 for the Jacobian A of a recurrence, or its transpose: one scan along the sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from deqlm_solvers.core.dtypes import rounding_slack
from deqlm_solvers.core.sizes import installed_bytes
from deqlm_solvers.methods.deer.blocks import Push, blocks_from_products, signs_of
from deqlm_solvers.methods.deer.grid import Blocks, Grid
from deqlm_solvers.methods.deer.reach import Reach, moved_tokens, reach_of
from deqlm_solvers.methods.deer.scan import newton_step

__all__ = ["Along", "Inverse", "one_by_one"]


@dataclass(frozen=True, eq=False)
class Inverse:
    """x of (I - A) x = r, as far as the blocks of A tell.

    Attributes:
        blocks: of A, last token first where A is a transpose.
        size: largest norm of a block of each row, (B,) float64.
        products: that were spent.
        along: of which these are.
    """

    blocks: Blocks
    size: Tensor
    products: int
    along: Along

    def __call__(self, r: Tensor) -> Tensor:
        """Return x, (B, N) float64, for r (B, N)."""
        shaped = self.along.turned(r.double()).reshape(r.shape[0], *self.along.grid)
        return self.along.turned(newton_step(self.blocks, shaped).flatten(1))


@dataclass(frozen=True, eq=False)
class Along:
    """A as a map along a sequence.

    Attributes:
        push: products with A of all rows, (K, N) to (K, B, N).
        grid: how a row is read.
        backwards: a token is seen by the one before it: A is the transpose of a causal Jacobian.
        counts: (B, L) bool, tokens that count, or None for all.
        like: a tensor (B, N) of the dtype and device of products.
    """

    push: Push
    grid: Grid
    backwards: bool
    counts: Tensor | None
    like: Tensor

    def turned(self, t: Tensor) -> Tensor:
        """Return (..., N) in the order in which A is causal."""
        return t.unflatten(-1, (self.grid.tokens, -1)).flip(-2).flatten(-2) if self.backwards else t

    @cached_property
    def reach(self) -> Reach:
        """What tokens see through A at this point, found out by one product."""
        grid, rows = self.grid, self.like.shape[0]
        if not self.like.numel():
            return Reach(own=True, before=grid.tokens > 1, further=False)
        moved = moved_tokens(grid.tokens).to(self.like.device)
        numbers = signs_of(Grid(grid.tokens, grid.numbers, 1)).to(self.like)
        out = self._pushed((numbers * moved[:, None]).reshape(1, -1))[0].reshape(rows, grid.tokens, -1)
        sound = out.isfinite().all(2).all(1, keepdim=True)
        size = torch.where(sound[..., None], out, 0.0).abs().amax((1, 2), keepdim=True)
        changed = (out.abs() > rounding_slack(out.dtype) * size).any(2)
        counts = self._counted(rows) & sound
        if grid.tokens == 1 or not bool(counts.any()):
            return Reach(own=True, before=grid.tokens > 1, further=False)
        return reach_of(changed, moved.expand(rows, -1), counts)

    def seen(self) -> str:
        """Return in words that some token sees further."""
        if self.reach.example is None:
            return "this one has too few tokens that count to say so"
        row, token = self.reach.example
        if self.backwards:
            return f"here token {self.grid.tokens - 1 - token} of row {row} is seen by others"
        return f"here token {token} of row {row} sees others"

    def inverse(self) -> Inverse:
        """Return the inverse of I - A from the blocks that `reach` says to be all of A."""
        lags = tuple(lag for lag, sees in enumerate((self.reach.own, self.reach.before)) if sees)
        colours = max(1, len(lags))
        blocks = blocks_from_products(self._pushed, self.like, self.grid, lags, colours, signs_of(self.grid))
        if self.counts is not None:
            blocks = blocks.held(self._counted(self.like.shape[0]))
        size = torch.zeros(self.like.shape[0], dtype=torch.float64, device=self.like.device)
        for block in blocks:
            if block is not None and block.numel():
                size = size.maximum(torch.linalg.matrix_norm(block).amax((1, 2)))
        return Inverse(blocks, size, colours * self.grid.width * bool(lags), self)

    def dense(self) -> Along | None:
        """Return the same with full blocks; None where they are, or where they would not fit."""
        wide = Grid(self.grid.tokens, 1, self.grid.numbers)
        room = installed_bytes(self.like.device)
        # blocks of two lags and the scan over them
        needed = 8 * 6 * self.like.numel() * wide.width
        return None if wide == self.grid or (room is not None and needed > room) else replace(self, grid=wide)

    def _counted(self, rows: int) -> Tensor:
        if self.counts is None:
            return torch.ones(rows, self.grid.tokens, dtype=torch.bool, device=self.like.device)
        counts = self.counts.to(self.like.device)
        return counts.flip(1) if self.backwards else counts

    def _pushed(self, v: Tensor) -> Tensor:
        return self.turned(self.push(self.turned(v)))


def one_by_one(product: Callable[[Tensor], Tensor], like: Tensor) -> Push:
    """Return the products of K tangents (K, N) by K calls of ``product`` on (B, N)."""
    return lambda v: torch.stack([product(one.expand(like.shape).contiguous()) for one in v])
