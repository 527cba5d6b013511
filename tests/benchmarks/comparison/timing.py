"""Times that can be compared: process CPU time, contenders interleaved, medians."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["interleaved", "per_call"]

SHORTEST = 4e-3
"""Seconds that one sample takes at least; a shorter call is repeated inside it."""


def interleaved(calls: Sequence[Callable[[], Any]], rounds: int, budget: float = 0.6) -> list[list[float]]:
    """Return per contender the seconds of process CPU time of one call, one number per round.

    Every round runs each contender once, from another one on in each round, so that what drifts hits all alike. A
    contender that used up ``budget`` seconds is left out of further rounds, after three at least.

    Args:
        calls: what to time; each has been called before.
        rounds: samples wanted, >= 1.
        budget: seconds per contender.
    """
    repeats = [max(1, math.ceil(SHORTEST / max(_once(call, 1), 1e-7))) for call in calls]
    taken: list[list[float]] = [[] for _ in calls]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            for turn in range(len(calls)):
                i = (number + turn) % len(calls)
                spent = sum(taken[i]) * repeats[i]
                if number < 3 or spent < budget:
                    taken[i].append(_once(calls[i], repeats[i]))
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return taken


def per_call(call: Callable[[], Any], rounds: int = 9) -> float:
    """Return the median seconds of one call by itself."""
    call()
    return statistics.median(interleaved([call], rounds)[0])


def _once(call: Callable[[], Any], repeats: int) -> float:
    begun = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - begun) / repeats
