"""The variational dropouts of torchdeq, which keep no mask."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from deqlm.layers.shared_dropout import SharedDropout
from deqlm_solvers.core.checks import require

__all__ = [
    "VariationalDropToken1d",
    "VariationalDropToken2d",
    "VariationalDropToken3d",
    "VariationalDropout",
    "VariationalDropout1d",
    "VariationalDropout2d",
    "VariationalDropout3d",
    "reset_dropout",
]


class VariationalDropout(SharedDropout):
    """Drops entries; the mask stays for one call of a DEQ.

    Args:
        dropout: probability of dropping, in [0, 1).

    Examples:
        >>> import torch
        >>> VariationalDropout(0.5)(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(dropout)


class _Nd(SharedDropout):
    """Drops features or tokens of (B, *places, D), or of (B, D, *places) with ``token_first=False``."""

    PLACES: ClassVar[int]
    TOKENS: ClassVar[bool] = False

    def __init__(self, dropout: float = 0.5, token_first: bool = True) -> None:
        require(isinstance(token_first, bool), "token_first", token_first, "True or False")
        first = 1 if token_first else 2
        places = tuple(range(first, first + self.PLACES))
        feature = (self.PLACES + 1 if token_first else 1,)
        super().__init__(dropout, feature if self.TOKENS else places)
        self.token_first = token_first

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with features, or tokens, left out.

        Raises:
            ValueError: an input with another number of dimensions.
        """
        require(x.dim() == self.PLACES + 2, "x", tuple(x.shape), f"of {self.PLACES + 2} dimensions")
        return super().forward(x)


class VariationalDropout1d(_Nd):
    """Drops features of (B, L, D) for all tokens; of (B, D, L) with ``token_first=False``."""

    PLACES = 1


class VariationalDropout2d(_Nd):
    """Drops features of (B, H, W, D) for all places; of (B, D, H, W) with ``token_first=False``."""

    PLACES = 2


class VariationalDropout3d(_Nd):
    """Drops features of (B, T, H, W, D) for all places; of (B, D, T, H, W) with ``token_first=False``."""

    PLACES = 3


class VariationalDropToken1d(_Nd):
    """Drops tokens of (B, L, D) whole; of (B, D, L) with ``token_first=False``."""

    PLACES, TOKENS = 1, True


class VariationalDropToken2d(_Nd):
    """Drops places of (B, H, W, D) whole; of (B, D, H, W) with ``token_first=False``."""

    PLACES, TOKENS = 2, True


class VariationalDropToken3d(_Nd):
    """Drops places of (B, T, H, W, D) whole; of (B, D, T, H, W) with ``token_first=False``."""

    PLACES, TOKENS = 3, True


def reset_dropout(model: nn.Module) -> None:
    """Do nothing: a mask lives for one call, and the next one draws its own."""
