"""Modes for any causal layer of a user: its own chunks, or itself on the committed prefix and the chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deqlm.sequence.chunk_evaluator import NoiseError, refuse_noise, some_rows
from deqlm.wrap.cuts import first_dims, some
from deqlm.wrap.inject import Inject
from deqlm.wrap.replay import Replay
from deqlm.wrap.trees import map_tensors
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.dtypes import rounding_slack
from deqlm_solvers.core.kinds import is_dense

__all__ = ["CausalCall", "has_chunks"]

PROBED = 16
"""Tokens on which causality is probed, at most."""


def has_chunks(layer: Any) -> bool:
    """Say whether a layer goes on from a cache by ``forward_chunk(z, u, cache) -> (out, cache)``."""
    return callable(getattr(layer, "forward_chunk", None))


class CausalCall:
    """One call of a `deqlm.DEQ` on a causal layer.

    Args:
        layer: the user's layer.
        inject: how u enters it.
        inputs: (u, args, kwargs); tensors whose first two dimensions are (B, L) are cut along the second.
        shape: of the state, (B, L, ...).
        device: of the state.
    """

    def __init__(
        self,
        layer: Callable[..., Any],
        inject: Inject,
        inputs: tuple[Any, ...],
        shape: torch.Size,
        device: torch.device,
    ) -> None:
        require(
            len(shape) >= 2 and shape[1] >= 1,
            "the state",
            tuple(shape),
            "of shape (B, L, ...), L >= 1, for causal=True",
        )
        self.layer, self.inject, self.inputs, self.shape, self.device = layer, inject, inputs, shape, device
        self.chunked = has_chunks(layer)
        module = layer if isinstance(layer, nn.Module) else None
        evaluated: Any = layer.forward_chunk if self.chunked else layer  # type: ignore[attr-defined]
        self.replay = Replay(evaluated, device, module)

    @property
    def cache(self) -> Any:
        """What no token leaves."""
        return self.layer.empty_cache(self.shape[0]) if hasattr(self.layer, "empty_cache") else None  # type: ignore[attr-defined]

    def chunk(self, first: int, end: int) -> LayerChunk:
        """Return the map of tokens ``first`` to ``end`` (exclusive)."""
        begin = first if self.chunked else 0
        tokens = end - begin
        return LayerChunk(self.replay, self.inject, self.cut(begin, end), self.shape[0], tokens, chunked=self.chunked)

    def cut(self, first: int, end: int) -> tuple[Any, ...]:
        """Return the inputs of tokens ``first`` to ``end``."""

        def select(leaf: Tensor) -> Tensor:
            if first_dims(leaf, 2) != self.shape[:2]:
                return leaf
            if is_dense(leaf):
                return leaf[:, first:end]
            return some(leaf, torch.arange(first, end, device=self.device), dim=1)

        return map_tensors(select, self.inputs)

    def probe(self, z: Tensor, *, chunks: bool) -> None:
        """Raise unless the layer is causal on the first tokens, and with ``chunks`` its chunks equal the whole.

        It takes two evaluations on at most 16 tokens, and two more with ``chunks``; a layer that is not causal is
        evaluated once more per token, to say which one sees which. Random numbers that the layer draws
        are the same in each, and leave the generators as they were. A layer that does not take fewer tokens than there
        are, or the points of the probe, raises what it likes: with ``chunks`` that is why it has none, else the check
        is left out.

        Args:
            z: the start, (B, L, ...).
            chunks: whether the call will cut its tokens.

        Raises:
            ValueError: tokens see later ones, or chunks do not equal the whole.
        """
        length = min(self.shape[1], PROBED)
        if length < 2 or not self.shape[0]:
            return
        draw = torch.Generator("cpu").manual_seed(0)
        like = {"generator": draw, "dtype": torch.float32, "device": "cpu"}
        z = torch.randn(*z.shape[:1], length, *z.shape[2:], **like).to(z)
        # inside parametrize.cached() the first evaluation makes the weights of all, which need their graph
        cached = bool(parametrize._cache_enabled) and torch.is_grad_enabled()
        try:
            with torch.set_grad_enabled(cached):
                fault = self._fault(z, chunks=chunks)
        except NoiseError:
            raise
        except Exception as error:
            if not chunks:
                return
            text = "mode must be 'simultaneous': the layer does not take some of its tokens"
            raise ValueError(f"{text} ({type(error).__name__}: {error})") from error
        if fault:
            raise ValueError(fault)

    def _fault(self, z: Tensor, *, chunks: bool) -> str:
        """Return what `probe` finds wrong at ``z``, (B, l, ...); empty where nothing is."""
        length = z.shape[1]
        # odd, so that a layer that mixes tokens in blocks of 2, 4, 8 is cut within a block
        half = (length // 2) | 1
        layer = Replay(self.layer, self.device)
        layer.seal()
        moved = torch.cat([z[:, :half], z[:, half:] + 1], dim=1)

        def whole(z: Tensor) -> Tensor:
            u, args, kwargs = self.cut(0, z.shape[1])
            return self.inject.join(layer, z, u, args, kwargs)

        want = whole(z)
        if not _same(whole(moved)[:, :half], want[:, :half]):
            return f"causal=True needs a causal layer; {self._leak(whole, z, want)}"
        if not chunks:
            return ""
        first, cache = self.chunk(0, half)(z[:, :half], self.cache)
        rest, _ = self.chunk(half, length)(z[:, half:], cache)
        if first.shape[1] != half or not _same(torch.cat([first, rest], dim=1), want):
            how = "forward_chunk" if self.chunked else "the layer on a prefix (arguments (B, L, ...) are cut like x)"
            return f"mode must be 'simultaneous': {how} does not return what the layer does on all tokens"
        return ""

    def _leak(self, whole: Callable[[Tensor], Tensor], z: Tensor, want: Tensor) -> str:
        """Say which token of the layer sees which later one: the first that moves when one token of ``z`` moves."""
        for later in range(1, z.shape[1]):
            moved = z.clone()
            moved[:, later] += 1
            got = whole(moved)
            for token in range(later):
                if not _same(got[:, token], want[:, token]):
                    return f"token {token} of this layer sees token {later}, counted from 0"
        return "tokens of this layer see later tokens"


class LayerChunk:
    """A `deqlm.sequence.chunk_evaluator.ChunkMap` of a user's layer.

    Args:
        replay: its ``forward_chunk``, or the layer itself.
        inject: how u enters it.
        inputs: (u, args, kwargs) of the chunk's tokens; for a layer without ``forward_chunk``, of all up to its end.
        batch: rows.
        tokens: that one evaluation computes.
        chunked: whether ``replay`` goes on from a cache. If not, the cache is the committed prefix of the state.
    """

    def __init__(
        self, replay: Replay, inject: Inject, inputs: tuple[Any, ...], batch: int, tokens: int, *, chunked: bool
    ) -> None:
        self.replay, self.inject, self.inputs = replay, inject, inputs
        self.batch, self.tokens, self.chunked = batch, tokens, chunked

    def __call__(self, z: Tensor, cache: Any) -> tuple[Tensor, Any]:
        u, args, kwargs = self.inputs
        if not self.chunked:
            state = z if cache is None else torch.cat([cache, z], dim=1)
            y = self.inject.join(self.replay, state, u, args, kwargs)[:, state.shape[1] - z.shape[1] :]
            refuse_noise(self.replay)
            return y, state
        left: list[Any] = []

        def layer(z: Tensor, *given: Any, **kwargs: Any) -> Tensor:
            # "add" gives the layer no u, "argument" does
            u, rest = (None, given) if len(given) == len(args) else (given[0], given[1:])
            y, after = self.replay(z, u, cache, *rest, **kwargs)
            left.append(after)
            return y

        y = self.inject.join(layer, z, u, args, kwargs)
        refuse_noise(self.replay)
        return y, left[-1]

    def rows(self, index: Tensor) -> LayerChunk:
        """Return the map of some rows (K,), int64."""
        inputs = some_rows(self.inputs, index, self.batch)
        return LayerChunk(self.replay, self.inject, inputs, index.shape[0], self.tokens, chunked=self.chunked)


def _same(got: Tensor, want: Tensor) -> bool:
    slack = rounding_slack(want.dtype)
    return got.shape == want.shape and torch.allclose(got, want, rtol=slack, atol=slack, equal_nan=True)
