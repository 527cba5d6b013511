"""Blocks of the Jacobian along a sequence: how a token depends on itself and on the one before it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require
from deqlm_solvers.core.dtypes import rounding_slack
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.evaluator import Evaluator

__all__ = ["PUSHED", "Grid", "check_causal", "colours_at_once", "lagged_blocks"]

PUSHED = 2**20
"""Numbers of tangents that one call of f carries, at most, if that is one colour or more."""


class Grid(NamedTuple):
    """How a row of N unknowns is read: L tokens of D numbers.

    Attributes:
        tokens: L.
        width: D.
    """

    tokens: int
    width: int

    @classmethod
    def of(cls, layout: Layout, stop: Stop, unknowns: int) -> Grid:
        """Return the grid of the rows of a layout.

        Tokens are the first dimension of a row of several, (L, D, ...), and of a row of one if the `Stop` tests tokens.
        A row of one dimension is otherwise one token.

        Raises:
            ValueError: a state of several tensors, or tokens along another dimension.
        """
        leaves = layout.leaves or ((unknowns,),)
        require(len(leaves) == 1, "the state", list(leaves), "one tensor for 'deer', whose rows are (L, D)")
        (shape,) = leaves
        if stop.per == "token":
            axis = stop.token_dim - layout.batch_dims
            require(axis == 0, "token_dim", stop.token_dim, f"{layout.batch_dims} for 'deer', behind the batch")
        elif len(shape) < 2:
            return cls(1, unknowns)
        return cls(shape[0], math.prod(shape[1:]))


def colours_at_once(grid: Grid, rows: int, colours: int) -> int:
    """Return how many colours go through one call of f."""
    return max(1, min(colours, PUSHED // max(1, rows * grid.tokens * grid.width**2)))


def lagged_blocks(f: Evaluator, z: Tensor, grid: Grid, lags: int, colours: int) -> Tensor:
    """Return the blocks dF_t/dz_{t-k} of lags k = 0 to ``lags``, (lags + 1, B, L, D, D) float64.

    A tangent moves one number of every token of one colour c: tokens c, c + C, c + 2 C, ... of C colours, C D tangents
    in all. What comes out for lag k is the sum of the blocks of lags k, k + C, k + 2 C, ...: exact if C is L, or if no
    token sees C or more tokens back. No fewer than L D tangents do for every causal map: to tell dF_t/dz_t from what
    token t sees before, some combination of them must be one number of token t and nothing on tokens before it, for
    every t, and L D tangents of which this holds are linearly independent.

    Args:
        f: the map.
        z: the point, (B, N).
        grid: its tokens.
        lags: 0 or 1.
        colours: C, > ``lags`` unless it is L.
    """
    tokens, width = grid
    rows = z.shape[0]
    blocks = torch.zeros(lags + 1, rows, tokens, width, width, dtype=torch.float64, device=z.device)
    at_once = colours_at_once(grid, rows, colours)
    for first in range(0, colours, at_once):
        some = range(first, min(first + at_once, colours))
        for colour, out in zip(some, _push(f, z, grid, some, colours), strict=True):
            for lag in range(lags + 1):
                seen = slice(colour + lag, None, colours)
                blocks[lag][:, seen] = out[:, :, seen].permute(1, 2, 3, 0).double()
        del out  # holds what one call returned, while the next one runs
    return blocks


def _push(f: Evaluator, z: Tensor, grid: Grid, some: range, colours: int) -> Tensor:
    """Return J v for the D tangents of ``some`` colours, (colours of ``some``, D, B, L, D)."""
    tokens, width = grid
    v = torch.zeros(len(some), width, tokens, width, dtype=z.dtype, device=z.device)
    for tangents, colour in zip(v, some, strict=True):
        tangents[:, colour::colours] = torch.eye(width, dtype=z.dtype, device=z.device)[:, None]
    return f.products(z, v.reshape(-1, tokens * width)).reshape(len(some), width, z.shape[0], tokens, width)


def check_causal(f: Evaluator, at: Evaluation, grid: Grid, mask: Tensor | None) -> None:
    """Raise unless the tokens before the last one keep their values when the last one is moved; one evaluation.

    Args:
        f: the map.
        at: an evaluation.
        grid: its tokens.
        mask: (B, L) bool, True where a token counts, or None; the last token that counts is moved.

    Raises:
        ValueError: one does not; the message names it.
    """
    rows, tokens = at.z.shape[0], grid.tokens
    place = torch.arange(tokens, device=at.z.device)
    counts = torch.ones(rows, tokens, dtype=torch.bool, device=at.z.device) if mask is None else mask.to(at.z.device)
    last = torch.where(counts, place, 0).amax(1, keepdim=True)
    z = at.z.reshape(rows, *grid)
    moved = torch.where((place == last)[..., None], z + 1 + z.abs(), z)
    fz, want = f.aside(moved.reshape(at.z.shape)).to(at.fz.dtype).reshape(z.shape), at.fz.reshape(z.shape)
    slack = rounding_slack(f.dtype)
    size = torch.where(counts[..., None], want, 0.0).abs().amax((1, 2), keepdim=True)
    leaks = ((fz - want).abs() > slack * size).any(2) & counts & (place < last)
    if bool(leaks.any()):
        row, token = leaks.nonzero()[0].tolist()
        raise ValueError(
            f"'deer' needs a causal map, in which token t sees no later one: token {token} of row {row} changes with "
            f"token {int(last[row])}"
        )
