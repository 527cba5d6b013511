"""A map that moves one token an evaluation, with its fixed point."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def parity_chain(B: int, L: int, seed: int = 0) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return z_t <- bit_t * sign(z_{t-1}) and its fixed point.

    The first bit is -1, so from zero the worst token's residual is 1 once, 2 for L - 1 evaluations, then 0.
    """
    bits = (torch.randint(0, 2, (B, L), generator=torch.Generator().manual_seed(seed)) * 2 - 1).double()
    bits[:, 0] = -1
    truth = bits.cumprod(dim=1)

    def f(z: Tensor) -> Tensor:
        before = torch.cat([torch.ones_like(z[:, :1]), torch.where(z[:, :-1] >= 0, 1.0, -1.0).to(z)], dim=1)
        return before * bits.to(z)

    return f, truth
