"""What a mixer remembers of earlier tokens: values that go in and come out, never written in place.

An evaluation of f reads a cache and ignores the new one; the evaluation that commits a chunk keeps it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["KVCache", "Mamba2Cache"]


class Mamba2Cache(NamedTuple):
    """Decode state of one `deqlm.layers.Mamba2`.

    Attributes:
        window: the last W - 1 inputs of the convolution, (B, W - 1, C), after injection and before the convolution.
        state: the SSM's state, (B, H, P, N), float32 or wider.
    """

    window: Tensor
    state: Tensor

    def rows(self, index: Tensor) -> Mamba2Cache:
        """Return the cache of some rows, in the order of ``index`` (K,), int64: for beams and rows that leave."""
        return Mamba2Cache(self.window.index_select(0, index), self.state.index_select(0, index))


class KVCache(NamedTuple):
    """Keys and values of one `deqlm.layers.Attention`.

    Attributes:
        k: keys after RoPE, (B, KV, T, P).
        v: values, (B, KV, T, P).
        mask: (B, T) bool, False where the token is padding; None when none is.
        forgotten: tokens before these T, none of them padding, that a sliding window has passed.
    """

    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    forgotten: int = 0

    @property
    def length(self) -> int:
        """Tokens seen so far, padding included."""
        return self.forgotten + self.k.shape[2]

    @property
    def committed(self) -> Tensor | None:
        """Real tokens seen so far per row, (B,) int64, or None when no token is padding."""
        return None if self.mask is None else self.forgotten + self.mask.sum(1)

    def rows(self, index: Tensor) -> KVCache:
        """Return the cache of some rows, in the order of ``index`` (K,), int64: for beams and rows that leave."""
        mask = None if self.mask is None else self.mask.index_select(0, index)
        return KVCache(self.k.index_select(0, index), self.v.index_select(0, index), mask, self.forgotten)

    def last(self, count: int) -> KVCache:
        """Return the cache with the last ``count`` tokens only; with all of them where some are padding."""
        surplus = self.k.shape[2] - count
        if surplus <= 0 or self.mask is not None:
            return self
        # a view would keep what is forgotten alive
        k, v = (t[:, :, surplus:].clone() for t in (self.k, self.v))
        return KVCache(k, v, None, self.forgotten + surplus)

    def extend(self, k: Tensor, v: Tensor, mask: Tensor | None) -> KVCache:
        """Return the cache with further tokens, ``k`` and ``v`` (B, KV, L, P), ``mask`` (B, L) or None."""
        if self.mask is not None or mask is not None:
            old = _ones(self.k) if self.mask is None else self.mask
            mask = torch.cat([old, _ones(k) if mask is None else mask], dim=1)
        if self.k.shape[2] == 0:
            return KVCache(k, v, mask, self.forgotten)
        return KVCache(torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2), mask, self.forgotten)


def _ones(k: Tensor) -> Tensor:
    return torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
