"""Dropout that stays the same from token to token and, held by a `Context`, from evaluation to evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deqlm.ops.checks import require, whole

__all__ = ["VariationalDropout"]


class VariationalDropout(nn.Module):
    """Drops features of a row for all of its tokens at once, so the map z -> f(z) stays one map during a solve.

    Within a call the mask is the one that `Context.open` drew; without a context each evaluation draws one.

    Args:
        p: probability of dropping a feature; the kept ones are divided by 1 - p.
        width: features.

    Reference:
        Gal and Ghahramani (2016), A theoretically grounded application of dropout in recurrent neural networks.

    Examples:
        >>> dropout = VariationalDropout(0.5, 8)
        >>> y = dropout(torch.ones(2, 3, 8))
        >>> bool((y == y[:, :1]).all()), sorted(set(y.flatten().tolist()))
        (True, [0.0, 2.0])
    """

    def __init__(self, p: float, width: int) -> None:
        super().__init__()
        ok = isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p < 1
        require(ok, "dropout", p, "in [0, 1)")
        whole("width", width, 1)
        self.p, self.width = p, width

    @property
    def active(self) -> bool:
        """Whether anything is dropped: in train() and with p > 0."""
        return self.training and self.p > 0

    def draw(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return a new mask, (B, 1, width), of zeros and 1 / (1 - p)."""
        keep = torch.full((batch, 1, self.width), 1 - self.p, dtype=torch.float32, device=device)
        return torch.bernoulli(keep).div_(1 - self.p).to(dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``x`` (B, L, width) with features dropped by ``mask``, or by a new one."""
        if not self.active:
            return x
        if mask is None:
            mask = self.draw(x.shape[0], x.device, x.dtype)
        return x * mask.to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}, width={self.width}"
