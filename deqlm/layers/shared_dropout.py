"""Dropout whose mask is shared along some dimensions, and lives for one call of a `deqlm.DEQ`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deqlm.ops.checks import require

__all__ = ["SharedDropout"]


class SharedDropout(nn.Module):
    """Drops with probability ``p``, the same along the dimensions ``shared``, and divides what it keeps by 1 - p.

    No mask is kept on the module: within one call of a `deqlm.DEQ` noise is drawn once, so the mask stays fixed for all
    evaluations of the solve and of its backward, and is new in the next call. So the module can be copied, moved and
    called on any batch.

    Args:
        p: probability of dropping, in [0, 1).
        shared: dimensions along which the mask is one, such as (1,) for the tokens of (B, L, D); () is ``nn.Dropout``.

    Raises:
        ValueError: a probability outside its range.

    Reference:
        Gal and Ghahramani (2016), A theoretically grounded application of dropout in recurrent neural networks.

    Examples:
        >>> y = SharedDropout(0.5, shared=(1,))(torch.ones(2, 3, 8))
        >>> bool((y == y[:, :1]).all()), sorted(set(y.flatten().tolist()))
        (True, [0.0, 2.0])
    """

    def __init__(self, p: float = 0.5, shared: Sequence[int] = ()) -> None:
        super().__init__()
        ok = isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p < 1
        require(ok, "p", p, "in [0, 1)")
        self.p = float(p)
        self.shared = tuple(shared)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with a mask of its dtype and device."""
        if not self.training or self.p == 0:
            return x
        shape = list(x.shape)
        for dim in self.shared:
            shape[dim] = 1
        keep = torch.full(shape, 1 - self.p, dtype=torch.float32, device=x.device)
        return x * torch.bernoulli(keep).div_(1 - self.p).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}, shared={self.shared}"
