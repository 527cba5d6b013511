"""Which number of tokens per chunk takes the least time, from what chunks of each size took."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

__all__ = ["FIRST", "ChunkSizeTuner", "sizes_of"]

FIRST = 16
"""Tokens of the first chunks, and of all where nothing can be found out."""
COVERED = 64
"""Tokens in chunks of a size after which its price is known, in two chunks at least."""
SLACK = 1.25
"""A larger size is tried as long as the largest one so far costs at most so much more than the cheapest."""


class Chunk(NamedTuple):
    """What one chunk took: seconds, evaluations, and whether all its rows passed."""

    seconds: float
    evaluations: int
    passed: bool


@dataclass(eq=False)
class ChunkSizeTuner:
    """What chunks of each size have taken, and which size comes next.

    The price of a size is the least seconds per evaluation among its chunks, times their mean evaluations, over its
    tokens. Sizes are 16, 8, 32, 64, ...: below 8 only while half the size is cheaper, above 32 until one is dearer than
    ``SLACK`` times the cheapest. A size with a chunk that has not passed has no price, and one that would need more
    than ``most`` evaluations if they doubled with the tokens is not tried.

    Attributes:
        most: evaluations that a chunk may take.
        chunks: what was noted, by size.
        prices: seconds per token of sizes that were tried; infinite where a chunk has not passed.
        best: the cheapest of them; the first one before any is known.
        untried: the size whose price is wanted next, None when enough are known.
        warm: whether a chunk was solved before.

    Examples:
        >>> sizes = ChunkSizeTuner(most=100)
        >>> for first, end in sizes.cuts(500):
        ...     tokens = end - first
        ...     sizes.note(tokens, seconds=(4 + tokens) * (1 + tokens / 20), evaluations=4 + tokens)
        >>> sizes.best
        8
    """

    most: int
    chunks: dict[int, list[Chunk]] = field(default_factory=dict)
    prices: dict[int, float] = field(default_factory=dict)
    best: int = FIRST
    untried: int | None = FIRST
    warm: bool = False

    def cuts(self, length: int) -> Iterator[tuple[int, int]]:
        """Yield first token and end (exclusive) of each chunk; what it took is noted before the next one is asked for.

        ``length`` is the number of tokens L.
        """
        first = 0
        while first < length:
            end = min(first + (self.untried or self.best), length)
            yield first, end
            first = end

    def note(self, size: int, *, seconds: float, evaluations: int, passed: bool = True) -> None:
        """Take what a chunk of ``size`` tokens took, if its size is the one that is tried.

        The very first chunk is left out: it warms up, and the first tokens of some maps settle last.
        """
        if not self.warm:
            self.warm = True
            return
        if size != self.untried:
            return
        chunks = self.chunks.setdefault(size, [])
        chunks.append(Chunk(seconds, evaluations, passed))
        if len(chunks) >= max(2, COVERED // size):
            self.prices[size] = _price(size, chunks)
            self.best = min(self.prices, key=lambda size: self.prices[size])
            self.untried = self._next()

    def _next(self) -> int | None:
        """Return the size whose price is wanted next, or None when enough are known."""
        least, largest, best = min(self.prices), max(self.prices), self.best
        if self.prices[best] == float("inf"):
            return None
        if least == FIRST or (best == least and least > 1):
            return least // 2
        doubled = 2 * max(chunk.evaluations for chunk in self.chunks[largest])
        return 2 * largest if self.prices[largest] <= SLACK * self.prices[best] and doubled <= self.most else None


def _price(size: int, chunks: list[Chunk]) -> float:
    if not all(chunk.passed for chunk in chunks):
        return float("inf")
    each = min(chunk.seconds / max(1, chunk.evaluations) for chunk in chunks)
    return each * fmean(chunk.evaluations for chunk in chunks) / size


_known: weakref.WeakKeyDictionary[Any, dict[Hashable, ChunkSizeTuner]] = weakref.WeakKeyDictionary()


def sizes_of(owner: object, circumstances: Hashable, most: int) -> ChunkSizeTuner:
    """Return what is known for ``owner``, a layer or model, in these circumstances, kept for as long as it lives.

    What cannot be referred to weakly has nothing kept.
    """
    try:
        return _known.setdefault(owner, {}).setdefault(circumstances, ChunkSizeTuner(most))
    except TypeError:
        return ChunkSizeTuner(most)
