"""Rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqlm.ops.checks import require
from deqlm.ops.precision import no_autocast, wide

__all__ = ["Rope", "row_positions"]


@dataclass(frozen=True)
class Rope:
    """Rotates pairs (i, i + P/2) of a head by the angle position * theta^(-2i/P); the half-split layout of Llama.

    Args:
        width: P, features of a head; even.
        theta: base of the wavelengths.

    Reference:
        Su et al. (2021), RoFormer, arXiv 2104.09864, equation 15.

    Examples:
        >>> rope = Rope(2, theta=1e4)
        >>> table = rope.table(torch.tensor([[0, 1]]))
        >>> rope.rotate(torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2), table).round(decimals=2).squeeze()
        tensor([[1.0000, 0.0000],
                [0.5400, 0.8400]])
    """

    width: int
    theta: float = 5e5

    def __post_init__(self) -> None:
        require(self.width >= 2 and self.width % 2 == 0, "the width of a rotated head", self.width, "even and >= 2")
        require(self.theta > 0, "theta", self.theta, "> 0")

    def table(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, (B, L, P/2) each, of ``positions`` (B, L); float32 or, if ``dtype`` is, float64."""
        dtype = wide(dtype)
        with no_autocast(positions.device):
            exponents = torch.arange(0, self.width, 2, dtype=dtype, device=positions.device) / self.width
            angles = positions[..., None].to(dtype) * self.theta**-exponents
        return angles.cos(), angles.sin()

    def rotate(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Return ``x`` (B, H, L, P) rotated, in its dtype; the arithmetic is that of the ``table`` (B or 1, L, P/2)."""
        cos, sin = (t[:, None] for t in table)
        left, right = x.to(cos.dtype).chunk(2, dim=-1)
        turned = [torch.addcmul(left * cos, right, sin, value=-1), torch.addcmul(right * cos, left, sin)]
        return torch.cat(turned, dim=-1).to(x.dtype)


def row_positions(
    mask: Tensor | None, length: int, *, past: int | Tensor = 0, device: torch.device | None = None
) -> Tensor:
    """Return the positions of tokens, int64, counting real tokens only.

    Args:
        mask: (B, L) bool, False at padding, or None.
        length: L.
        past: real tokens before these ones: one number, or one per row (B,).
        device: of the result, where there is no mask.

    Returns:
        (B, L), or (1, L) where all rows agree; tokens of padding have some position >= 0.

    Examples:
        >>> row_positions(torch.tensor([[False, True, True], [True, True, True]]), 3, past=5)
        tensor([[5, 5, 6],
                [5, 6, 7]])
    """
    if isinstance(past, Tensor):
        past, device = past[:, None], past.device
    if mask is None:
        return torch.arange(length, device=device)[None] + past
    return (mask.long().cumsum(1) - 1).clamp(min=0) + past
