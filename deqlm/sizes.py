"""Which number of tokens per chunk is cheapest for a map, by timing it."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqlm.pieces import ChunkMap, Piece
from deqlm_solvers import Cost

__all__ = ["cheapest_size", "expected_evaluations"]

REPEATS = 5
"""Timed evaluations of each size, of which the fastest counts; one more warms up."""

_known: weakref.WeakKeyDictionary[Any, dict[Any, dict[int, float]]] = weakref.WeakKeyDictionary()
"""Seconds of an evaluation, by owner, circumstances and size."""


def expected_evaluations(size: int) -> float:
    """Return how many evaluations a chunk of ``size`` tokens is taken to need.

    Measured with models that track a state, in which every token waits for the one before (docs/guides/what_moves.md);
    maps whose tokens settle together need fewer, and then any size does.
    """
    return 4 + 1.25 * size


def cheapest_size(owner: object, chunk: Callable[[int, int], ChunkMap], cache: Any, z: Tensor) -> tuple[int, Cost]:
    """Return the size with the least seconds per evaluation times expected evaluations per token, and what was spent.

    Sizes are the powers of two up to L, and L. Each is timed once for an owner, batch size, dtype, device and number of
    threads. The sizes grow until one costs twice the cheapest per token, so that no evaluation is much too long.

    Args:
        owner: the layer or model; what cannot be referred to weakly is timed in every call.
        chunk: see `deqlm.chunks.solve_chunks`.
        cache: what tokens before the first one left.
        z: the start, (B, L, ...).
    """
    batch, length = z.shape[:2]
    circumstances = (batch, z.shape[2:], z.dtype, z.device, torch.get_num_threads(), torch.is_inference_mode_enabled())
    try:
        known = _known.setdefault(owner, {}).setdefault(circumstances, {})
    except TypeError:
        known = {}
    spent, cheapest = Cost(), float("inf")
    tried: list[int] = []
    for size in (*(1 << k for k in range(length.bit_length()) if 1 << k < length), length):
        if size not in known:
            known[size], cost = _seconds(chunk(0, size), cache, z[:, :size])
            spent = spent + cost
        tried.append(size)
        price = known[size] * expected_evaluations(size) / size
        cheapest = min(cheapest, price)
        if price > 2 * cheapest:
            break
    # fewer tokens take no longer: where the clock says so, something else ran
    seconds = {size: min(known[larger] for larger in tried if larger >= size) for size in tried}
    return min(tried, key=lambda size: seconds[size] * expected_evaluations(size) / size), spent


@torch.no_grad()
def _seconds(chunk: ChunkMap, cache: Any, z: Tensor) -> tuple[float, Cost]:
    piece = Piece(chunk, cache, z.shape, whole=False)
    rows = z.reshape(z.shape[0], -1)
    taken = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        y = piece(rows)
        if y.device.type == "cuda":
            torch.cuda.synchronize(y.device)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:]), piece.cost
