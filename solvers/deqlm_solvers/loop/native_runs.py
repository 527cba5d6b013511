"""How the unknowns of a row fall into tokens or leaves, as the compiled step reads it."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import torch

__all__ = ["runs_of"]


@functools.lru_cache(maxsize=64)
def runs_of(per: str, leaves: tuple[tuple[int, ...], ...], axis: int, rms: bool) -> tuple[int, Any, Any, Any]:
    """Return the number of groups, ends and groups of all runs, and the divisor of each group's norm."""
    ends, owners = [], []
    sizes = [math.prod(shape) for shape in leaves]
    groups = 0 if per == "row" else len(sizes)
    if per == "row":
        sizes = [sum(sizes)]
    elif per == "leaf":
        ends, owners = torch.tensor(sizes).cumsum(0).tolist(), list(range(len(sizes)))
    else:
        sizes, end = [], 0
        for shape in leaves:
            length, width, outer = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape[:axis])
            sizes = [a + outer * width for a in (sizes or [0] * length)]
            for _ in range(outer):
                ends += range(end + width, end + width * length + 1, width) if width else [end] * length
                end += width * length
            owners += list(range(length)) * outer
        groups = len(sizes)
    roots = [math.sqrt(max(1, n)) if rms else 1.0 for n in sizes] or [1.0]
    run_end, run_group = (ctypes.c_int64 * len(ends))(*ends), (ctypes.c_int32 * len(owners))(*owners)
    return groups, run_end, run_group, (ctypes.c_double * len(roots))(*roots)
