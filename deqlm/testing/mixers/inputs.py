"""Inputs of a mixer, and what its cache is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from deqlm.layers import Context
from deqlm.testing.check import expect

__all__ = ["F64", "Make", "by_chunks", "cache_leaves", "expect_close", "inputs"]

F64 = torch.float64

Make = Callable[..., Any]
"""Makes a new mixer; takes ``dropout`` where the mixer draws noise."""


def inputs(mixer: Any, batch: int = 3, length: int = 21, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    """Return z (B, L, D) and u (B, L, U)."""
    z = torch.randn(batch, length, mixer.d_model, dtype=dtype)
    return z, torch.randn(batch, length, mixer.d_inject, dtype=dtype)


def by_chunks(mixer: Any, z: Tensor, u: Tensor, cuts: Any, context: Context | None = None) -> tuple[Tensor, Any]:
    """Return the outputs of all chunks, and the last cache."""
    length = z.shape[1]
    parts, cache = [], mixer.empty_cache(len(z))
    for start, stop in pairwise((0, *cuts, length)):
        part = None if context is None else context.tokens(start, stop)
        y, cache = mixer.forward_chunk(z[:, start:stop], u[:, start:stop], cache, part)
        parts.append(y)
    return torch.cat(parts, dim=1), cache


def cache_leaves(cache: Any) -> Iterator[Any]:
    """Yield what a cache holds: the tensors and plain values of tuples, lists, mappings and objects with fields."""
    if isinstance(cache, Tensor):
        yield cache
        return
    if isinstance(cache, Mapping):
        inside = list(cache.values())
    elif isinstance(cache, tuple | list):
        inside = list(cache)
    elif hasattr(cache, "__dict__"):
        inside = list(vars(cache).values())
    else:
        yield cache
        return
    for each in inside:
        yield from cache_leaves(each)


def expect_close(got: Tensor, want: Tensor, what: str, tolerance: float = 1e-12) -> None:
    """Raise AssertionError unless two tensors agree to ``tolerance``, relative and absolute."""
    expect(got.shape == want.shape, "{}: shapes {} and {}", what, tuple(got.shape), tuple(want.shape))
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, msg=lambda told: f"{what}: {told}")
