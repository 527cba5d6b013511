"""Blocks of the Jacobian along a sequence, from products: how a token depends on itself and on the one before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deqlm_solvers.methods.deer.grid import Blocks, Grid

__all__ = ["PUSHED", "Push", "blocks_from_products", "signs_of", "tangents_at_once"]

PUSHED = 2**21
"""Numbers of tangents that one call of f carries, at most, if that is one tangent or more."""

Push = Callable[[Tensor], Tensor]
"""Products with the Jacobian of all rows: tangents (K, N), each the same for all rows, to (K, B, N)."""


def tangents_at_once(grid: Grid, rows: int, tangents: int) -> int:
    """Return how many tangents go through one call of f."""
    return max(1, min(tangents, PUSHED // max(1, rows * grid.tokens * grid.numbers)))


def signs_of(grid: Grid, draw: int = 0) -> Tensor:
    """Return 1 or -1 for every group of every token, (L, G) float64 on the CPU, the same ones for the same ``draw``.

    Where a map lets groups see each other, which a single product cannot tell apart, what it mixes in has either sign
    as often as the other, and an estimate of the diagonal is right in the mean.
    """
    if grid.groups == 1:
        return torch.ones(grid.tokens, 1, dtype=torch.float64, device="cpu")
    drawn = torch.randint(2, (grid.tokens, grid.groups), generator=torch.Generator().manual_seed(draw), device="cpu")
    return 2.0 * drawn.double() - 1.0


def blocks_from_products(
    push: Push, like: Tensor, grid: Grid, lags: Sequence[int], colours: int, signs: Tensor
) -> Blocks:
    """Return the blocks dF_t/dz_{t-k} of the lags k that are asked for.

    A tangent moves one number of every group of every token of one colour c: tokens c, c + C, c + 2 C, ... of C
    colours, C S tangents in all. What comes out for lag k is the sum of the blocks of lags k, k + C, k + 2 C, ...:
    exact if C is L, or if no token sees further back than the lags asked for and C is their number. No fewer than L D
    tangents do for every causal map: to tell dF_t/dz_t from what token t sees before, some combination of them must be
    one number of token t and nothing on tokens before it, for every t, and L D tangents of which this holds are
    linearly independent.

    Args:
        push: products with the Jacobian.
        like: a tensor (B, N) of the dtype and device of tangents.
        grid: how a row is read.
        lags: 0, 1 or both, ascending.
        colours: C, >= the number of lags, or L.
        signs: see `signs_of`.
    """
    rows, (tokens, groups, width) = like.shape[0], grid
    shape = (rows, tokens, groups, width, width)
    found: dict[int, Tensor] = {lag: torch.zeros(shape, dtype=torch.float64, device=like.device) for lag in lags}
    signs = signs.to(like)
    tangents = colours * width if lags else 0
    at_once = tangents_at_once(grid, rows, tangents)
    for first in range(0, tangents, at_once):
        some = range(first, min(first + at_once, tangents))
        v = torch.zeros(len(some), tokens, groups, width, dtype=like.dtype, device=like.device)
        for tangent, number in zip(v, some, strict=True):
            colour, place = divmod(number, width)
            tangent[colour::colours, :, place] = signs[colour::colours]
        out = push(v.reshape(len(some), -1)).reshape(len(some), rows, tokens, groups, width)
        for pushed, number in zip(out, some, strict=True):
            colour, place = divmod(number, width)
            for lag, block in found.items():
                seen, moved = slice(colour + lag, None, colours), slice(colour, tokens - lag, colours)
                block[:, seen, :, :, place] = pushed[:, seen] * signs[moved, :, None]
        del out, pushed  # what one call returned goes before the next one runs
    return Blocks(found.get(0), found.get(1))
