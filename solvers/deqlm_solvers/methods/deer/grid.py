"""How a row of N unknowns is read along a sequence: tokens, and numbers that see each other."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.stop import Stop

__all__ = ["Blocks", "Grid", "Structure"]

Structure = Literal["dense", "block", "diagonal"]
"""What the D x D blocks of the Jacobian are taken for: full, block diagonal, or diagonal."""


class Grid(NamedTuple):
    """A row of L tokens of G groups of S numbers; D = G S, and only numbers of one group see each other.

    Attributes:
        tokens: L.
        groups: G; 1 for dense blocks.
        width: S; 1 for diagonal blocks.
    """

    tokens: int
    groups: int
    width: int

    @property
    def numbers(self) -> int:
        """D, the unknowns of one token."""
        return self.groups * self.width

    @classmethod
    def of(cls, layout: Layout, stop: Stop, unknowns: int, structure: Structure = "dense") -> Grid:
        """Return the grid of the rows of a layout.

        Tokens are the first dimension of a row of several, (L, D, ...), and of a row of one if the `Stop` tests tokens.
        A row of one dimension is otherwise one token. With "block" the last dimension is a group.

        Raises:
            ValueError: a state of several tensors, tokens along another dimension, or "block" without a dimension for
                the groups.
        """
        leaves = layout.leaves or ((unknowns,),)
        rule = "one tensor for 'deer', whose rows are (L, D); torch.stack tensors of equal shape behind the tokens"
        require(len(leaves) == 1, "the state", list(leaves), rule)
        (shape,) = leaves
        if stop.per == "token":
            axis = stop.token_dim - layout.batch_dims
            require(axis == 0, "token_dim", stop.token_dim, f"{layout.batch_dims} for 'deer', behind the batch")
        elif len(shape) < 2:
            shape = (1, unknowns)
        numbers = math.prod(shape[1:])
        if structure == "diagonal":
            return cls(shape[0], numbers, 1)
        if structure == "dense":
            return cls(shape[0], 1, numbers)
        require(len(shape) > 2, "structure", structure, f"'dense' or 'diagonal' for rows {shape}; rows (L, ..., S) fit")
        return cls(shape[0], math.prod(shape[1:-1]), shape[-1])


class Blocks(NamedTuple):
    """The Jacobian of a map along a sequence, as far as it is kept; None where there is nothing.

    Attributes:
        own: dF_t/dz_t, (B, L, G, S, S) float64.
        before: dF_t/dz_{t-1}, likewise; zero at t = 0.
    """

    own: Tensor | None
    before: Tensor | None

    def held(self, counts: Tensor) -> Blocks:
        """Return the blocks without those of tokens that do not count, whose derivatives may be NaN.

        Args:
            counts: (B, L) bool.
        """
        own, before = self
        here = counts[:, :, None, None, None]
        if own is not None:
            own = torch.where(here, own, 0.0)
        if before is not None:
            both = here & here.roll(1, dims=1)
            both[:, 0] = False
            before = torch.where(both, before, 0.0)
        return Blocks(own, before)
