"""Peak memory of a solver, in a run of its own that nobody times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deqlm_solvers import Map
from deqlm_solvers.memory.meter import MemoryMeter

__all__ = ["MemoryMeter", "peak_memory"]

PROBE = 4


def peak_memory(run: Callable[[Map], Any], f: Map) -> int:
    """Return the most bytes that ``run(f)`` holds at once, over at most its first 128 evaluations.

    See `MemoryMeter` for what counts. A short run looks first whether numpy is used at all; only then is numpy tracked.

    Args:
        run: solves with the map it is given.
        f: the map.
    """
    probe = MemoryMeter(numpy=True, most=PROBE)
    with probe:
        run(probe.watch(f))
    meter = MemoryMeter(numpy=probe.numpy_seen)
    with meter:
        run(meter.watch(f))
    return meter.peak
