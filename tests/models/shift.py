"""A mixer of another package, small: `Counted` has what those ask for who need to know more of it, `Shift` has not."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deqlm.layers import Context

__all__ = ["Counted", "Shift"]


class Last(NamedTuple):
    """The last projected token, (B, U)."""

    token: Tensor

    def rows(self, index: Tensor) -> Last:
        return Last(self.token[index])


class Shift(nn.Module):
    """A product of each token with the one before it and a matrix."""

    def __init__(self, d_model: int, **made: Any) -> None:
        super().__init__()
        made.pop("dropout", None)
        self.d_model, self.d_inject = d_model, 2 * d_model
        self.in_proj = nn.Linear(d_model, self.d_inject, bias=False, **made)
        self.out_proj = nn.Linear(d_model, d_model, bias=False, **made)
        self.turn = nn.Parameter(torch.eye(self.d_inject, **made))

    def forward(self, z: Tensor, u: Tensor | None = None, context: Context | None = None) -> Tensor:
        return self.forward_chunk(z, u, self.empty_cache(len(z)), context)[0]

    def forward_chunk(self, z: Tensor, u: Tensor | None, cache: Last, context: Context | None = None) -> tuple:
        context = Context() if context is None else context
        x = context.apply(self.in_proj, context.keep(z))
        x = context.keep(x if u is None else x + u.to(x.dtype))
        before = torch.cat([cache.token[:, None].to(x.dtype), x[:, :-1]], dim=1)
        y = x + before @ self.turn.to(x.dtype)
        return context.keep(context.apply(self.out_proj, y[..., : self.d_model].tanh())), Last(x[:, -1])

    def empty_cache(self, batch: int) -> Last:
        return Last(self.turn.new_zeros(batch, self.d_inject))


class Counted(Shift):
    def flops(self, context: int) -> int:
        return 2 * self.d_inject**2

    def input_weight(self) -> Tensor:
        return self.in_proj.weight
