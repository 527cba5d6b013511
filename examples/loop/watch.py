"""The time that training takes, without what it is interrupted for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Watch"]


class Watch:
    """Wall and CPU seconds since it was made, on top of earlier ones.

    Args:
        wall: earlier wall seconds.
        cpu: earlier CPU seconds of the process.
    """

    def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
        self._wall, self._cpu = time.perf_counter() - wall, time.process_time() - cpu

    def read(self) -> dict[str, float]:
        """Return the seconds by the names of the clocks."""
        return {"wall": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing of what happens inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._wall += time.perf_counter() - wall
        self._cpu += time.process_time() - cpu
