"""What one call of a language model passes around: the cache of earlier tokens, and its map on a chunk."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deqlm.layers import Context
from deqlm.layers.kept_weights import KeptWeights
from deqlm.models.backbone import Backbone
from deqlm.sequence.chunk_evaluator import refuse_noise
from deqlm.wrap.replay import Replay
from deqlm_solvers.core.checks import require

__all__ = ["BackboneChunk", "LMCache", "chunk_forward"]


class LMCache(NamedTuple):
    """What earlier tokens left: a value, which no call changes.

    Attributes:
        layers: cache of each block.
        batch: rows B.
        length: token slots held, padding included.
        committed: real tokens among them per row, (B,) int64; None where all are real.
        ended: rows whose last slot is padding, (B,) bool; None where none is.
        kept: what was made of the weights, so that the next call need not make it again; None where nothing was.
    """

    layers: tuple[Any, ...]
    batch: int
    length: int
    committed: Tensor | None = None
    ended: Tensor | None = None
    kept: KeptWeights | None = None

    @classmethod
    def empty(cls, backbone: Backbone, batch: int, device: torch.device | None = None) -> LMCache:
        """Return the cache of ``batch`` rows without any token.

        Args:
            backbone: whose.
            batch: rows B.
            device: None is that of the parameters, which may be elsewhere between calls.
        """
        return cls(backbone.empty_cache(batch, device), batch, 0)

    def extend(
        self, layers: tuple[Any, ...], length: int, mask: Tensor | None, kept: KeptWeights | None = None
    ) -> LMCache:
        """Return the cache behind ``length`` further tokens, with their ``mask`` (B, length) or None.

        Args:
            layers: the new cache of each block.
            length: tokens.
            mask: bool, False at padding.
            kept: what was made of the weights.
        """
        committed = self.committed
        if mask is not None:
            committed = mask.sum(1) + (self.length if committed is None else committed)
        elif committed is not None:
            committed = committed + length
        ended = None if mask is None else ~mask[:, -1]
        return LMCache(layers, self.batch, self.length + length, committed, ended, kept)

    def check_fits(self, backbone: Backbone, batch: int) -> None:
        """Raise unless this is a cache of ``batch`` rows of such a backbone; layers check the sizes of their own part.

        Raises:
            TypeError: caches of other layers.
            ValueError: another batch size or number of blocks.
        """
        require(self.batch == batch, "the batch of the cache", self.batch, f"that of the tokens, {batch}")
        want = [type(layer) for layer in backbone.empty_cache(0)]
        require(len(self.layers) == len(want), "the blocks of the cache", len(self.layers), f"the model's {len(want)}")
        if (held := [type(layer) for layer in self.layers]) != want:
            raise TypeError(f"cache must hold {[t.__name__ for t in want]}, got {[t.__name__ for t in held]}")

    def check_next(self, mask: Tensor | None) -> None:
        """Raise if padding would stand between real tokens of a row; a convolution would see it there.

        Args:
            mask: of the tokens to come, (B, L) bool, or None where all are real.

        Raises:
            ValueError: it would.
        """
        if mask is None and self.ended is None:
            return
        if mask is None:
            assert self.ended is not None
            mask = torch.ones_like(self.ended)[:, None]
        before = torch.ones_like(mask[:, :1]) if self.ended is None else ~self.ended[:, None]
        held = self.length if self.committed is None else self.committed[:, None]
        earlier = mask.long().cumsum(1) - mask.long() + held
        between = mask & ~torch.cat([before, mask[:, :-1]], dim=1) & (earlier > 0)
        if bool(between.any()):
            rows = between.any(1).nonzero().flatten().tolist()
            raise ValueError(
                f"mask must have the real tokens of a row next to each other, got padding between them in rows {rows}: "
                "pad on the left, of cached tokens too"
            )

    def rows(self, index: Tensor) -> LMCache:
        """Return the cache of some rows, in the order of ``index`` (K,), int64: for beams and rows that leave.

        Examples:
            >>> import torch
            >>> from deqlm.layers import Attention, Block
            >>> cache = LMCache.empty(Backbone([Block(Attention(8, n_head=2))]), 3)
            >>> cache.rows(torch.tensor([2, 2])).batch
            2
        """
        layers = tuple(layer.rows(index) for layer in self.layers)
        committed = None if self.committed is None else self.committed.index_select(0, index)
        ended = None if self.ended is None else self.ended.index_select(0, index)
        return LMCache(layers, index.shape[0], self.length, committed, ended, self.kept)


def chunk_forward(backbone: Backbone, z: Tensor, u: Tensor, cache: Any, context: Context) -> tuple[Tensor, Any]:
    """Return f(z) and the cache with these tokens; without a ``cache``, f(z) of first tokens and no cache."""
    if cache is None:
        return backbone(z, u, context), None
    return backbone.forward_chunk(z, u, cache, context)


class BackboneChunk:
    """A `deqlm.sequence.chunk_evaluator.ChunkMap`: a backbone on some tokens of a call.

    Args:
        replay: `chunk_forward` of the backbone.
        u: injected input of these tokens.
        context: that of these tokens.
        partial: whether the call has further chunks, which would draw noise of their own.
    """

    def __init__(self, replay: Replay, u: Tensor, context: Context, *, partial: bool) -> None:
        self.replay, self.u, self.context, self.partial = replay, u, context, partial

    @property
    def tokens(self) -> int:
        """How many one evaluation of a row computes."""
        return self.u.shape[1]

    def __call__(self, z: Tensor, cache: Any) -> tuple[Tensor, Any]:
        y, cache = self.replay(z, self.u, cache, self.context)
        if self.partial:
            refuse_noise(self.replay)
        return y, cache

    def rows(self, index: Tensor) -> BackboneChunk | None:
        """Return the map of some rows; None where noise was drawn for the whole batch."""
        if self.replay.noisy:
            return None
        u = self.u.index_select(0, index)
        return BackboneChunk(self.replay, u, self.context.rows(index), partial=self.partial)
