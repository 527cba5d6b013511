"""The state that one batch leaves to the next: without a graph, and as plain data in a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deqlm.layers import KVCache, Mamba2Cache
from deqlm.models import LMCache

__all__ = ["cut", "from_plain", "to_plain"]

CACHES = {kind.__name__: kind for kind in (LMCache, Mamba2Cache, KVCache)}


def cut(cache: Any) -> Any:
    """Return a cache whose tensors have no graph and share no memory with longer ones."""
    if isinstance(cache, Tensor):
        return cache.detach().clone()
    if isinstance(cache, tuple):
        parts = [cut(part) for part in cache]
        return type(cache)(*parts) if hasattr(cache, "_fields") else tuple(parts)
    return cache


def to_plain(cache: Any) -> Any:
    """Return a cache as tensors, numbers, lists and dicts.

    Raises:
        TypeError: a cache of a kind that no checkpoint holds.
    """
    if isinstance(cache, tuple):
        name = type(cache).__name__
        if name != "tuple" and name not in CACHES:
            raise TypeError(f"a checkpoint holds the caches {', '.join(CACHES)}, got {name}")
        return {"kind": name, "parts": [to_plain(part) for part in cache]}
    return cache


def from_plain(data: Any, device: torch.device) -> Any:
    """Return the cache of `to_plain`, on ``device``."""
    if isinstance(data, dict):
        parts = [from_plain(part, device) for part in data["parts"]]
        return tuple(parts) if data["kind"] == "tuple" else CACHES[data["kind"]](*parts)
    return data.to(device) if isinstance(data, Tensor) else data
