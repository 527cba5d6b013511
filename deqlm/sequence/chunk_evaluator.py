"""The map of some tokens of a causal map, on top of what earlier tokens left."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from deqlm.wrap.cuts import first_dims, some
from deqlm.wrap.replay import Replay
from deqlm.wrap.trees import map_tensors, tensors
from deqlm_solvers import Layout
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.cost import Count
from deqlm_solvers.core.processes import Processes

__all__ = ["ChunkEvaluator", "ChunkMap", "NoiseError", "first_is_batch", "layout_of", "refuse_noise", "some_rows"]


class NoiseError(ValueError):
    """A layer draws noise within an evaluation, which chunks do not share."""


class ChunkMap(Protocol):
    """The map of one chunk of tokens of one call."""

    @property
    def tokens(self) -> int:
        """How many tokens an evaluation of a row computes; more than the chunk has where earlier ones are done anew."""
        ...

    def __call__(self, z: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Return f(z) of the chunk's tokens, in the shape of ``z`` (B, l, ...), and ``cache`` with them as new values.

        Args:
            z: state of these tokens.
            cache: what earlier tokens left; read and never written.
        """
        ...

    def rows(self, index: Tensor) -> ChunkMap | None:
        """Return the map of some rows (K,), int64, or None where rows cannot leave the batch."""
        ...


class ChunkEvaluator:
    """The map of one chunk on rows (B, l N), which remembers its last evaluation for the commit.

    Args:
        chunk: the map.
        cache: what earlier tokens left.
        shape: of the state of these tokens, (B, l, ...).
        count: shared by the maps of a call.
        known: what of a cache was taken to be per row in maps whose rows were found not to mix, likewise.
        whole: whether it is the map of all rows, which alone can be committed.
        together: processes that solve in step, or None.
    """

    def __init__(
        self,
        chunk: ChunkMap,
        cache: Any,
        shape: torch.Size,
        count: Count,
        known: set[tuple[bool, ...]],
        *,
        whole: bool = True,
        together: Processes | None = None,
    ) -> None:
        self.chunk = chunk
        self.cache = cache
        self.shape = shape
        self.whole = whole
        self.count = count
        self.known = known
        self.together = together
        self.last: tuple[Tensor, Tensor, Any] | None = None

    @property
    def apart(self) -> bool:
        """Whether rows are known not to mix, so that `narrow` needs no probe."""
        return self._seen in self.known

    @apart.setter
    def apart(self, value: bool) -> None:
        assert value, "rows that were found not to mix stay so"
        self.known.add(self._seen)

    @cached_property
    def _seen(self) -> tuple[bool, ...]:
        return first_is_batch(self.cache, self.shape[0])

    def __call__(self, z: Tensor) -> Tensor:
        self.last = None  # the old cache goes before the new one comes
        y, cache = self._evaluate(z)
        # what a solver differentiates here carries tangents or a graph, which must not be committed
        if self.whole and not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            self.last = (z.clone(), y, cache)
        return y.reshape(z.shape)

    def commit(self, z: Tensor, *, stepped: bool = False) -> tuple[Tensor, Any]:
        """Return f at ``z`` (B, l N), in the shape of the state, and the cache with these tokens.

        Rows that are done stay where they are, so the last evaluation is often at ``z`` already; where processes are
        in step, it is taken if it is so in all of them.

        Args:
            z: the point.
            stepped: ``z`` is a step behind the last evaluation, as after a budget, so that nothing is compared.
        """
        if stepped:
            self.last = None
        last = self.last if self.last is not None and torch.equal(self.last[0], z) else None
        again = last is None if self.together is None else self.together.any(last is None, z.device)
        return self._evaluate(z) if again or last is None else last[1:]

    def narrow(self, rows: Tensor) -> ChunkEvaluator | None:
        """Return the map on ``rows`` (K,) alone; see `deqlm_solvers.loop.subset.SubsetMap`."""
        chunk = self.chunk.rows(rows)
        if chunk is None:
            return None
        shape = torch.Size((rows.shape[0], *self.shape[1:]))
        return ChunkEvaluator(
            chunk, some_rows(self.cache, rows, self.shape[0]), shape, self.count, self.known, whole=False
        )

    def _evaluate(self, z: Tensor) -> tuple[Tensor, Any]:
        batch = self.shape[0]
        self.count.add(batch, batch * self.chunk.tokens)
        y, cache = self.chunk(z.reshape(self.shape), self.cache)
        if y.shape != self.shape:
            require(False, "the shape of f(z)", tuple(y.shape), f"that of z, {tuple(self.shape)}")
        return y.to(z.dtype), cache


def refuse_noise(replay: Replay) -> None:
    """Raise if an evaluation has drawn noise, which would be another one in every chunk.

    Raises:
        NoiseError: it has.
    """
    if replay.noisy:
        raise NoiseError(
            "mode must be Simultaneous() where the layer draws noise within an evaluation: each chunk would draw its "
            "own. Use eval(), or deqlm.layers.VariationalDropout, which a Context draws once per call"
        )


def some_rows(tree: Any, rows: Tensor, batch: int) -> Any:
    """Return ``tree`` with ``rows`` (K,) of every tensor whose first dimension is ``batch``."""

    def select(leaf: Tensor) -> Tensor:
        return some(leaf, rows) if first_dims(leaf, 1) == (batch,) else leaf

    return map_tensors(select, tree)


def first_is_batch(tree: Any, batch: int) -> tuple[bool, ...]:
    """Return of every tensor whether `some_rows` takes its first dimension for that of the batch."""
    return tuple(first_dims(leaf, 1) == (batch,) for leaf in tensors(tree))


def layout_of(layout: Layout, first: int, end: int) -> Layout:
    """Return the layout of tokens ``first`` to ``end`` (exclusive) of a state of one leaf."""
    assert layout.leaves is not None
    ((_, *rest),) = layout.leaves
    mask = None if layout.token_mask is None else layout.token_mask[:, first:end]
    return replace(layout, leaves=((end - first, *rest),), token_mask=mask)
