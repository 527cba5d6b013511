"""Peak bytes of tensors, counted at the dispatcher: the same numbers on every device and in every run."""

from __future__ import annotations

import contextlib
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deqlm_solvers.core.solver import Map

__all__ = ["LONGEST", "MemoryMeter"]

LONGEST = 128
"""Evaluations after which a run for memory is ended; what a solver would take later is not seen."""


class MemoryMeter:
    """Measures the most bytes held at once inside a ``with`` block, on any device.

    What counts: every torch storage born in the block, from its birth to its death, f's results included; and, with
    ``numpy``, what numpy has allocated. What does not count: the start and everything older, f's own temporaries,
    Python objects. Torch and numpy peaks are added, though they need not meet.

    numpy's share is tracemalloc's peak less the Python objects it held at the last look; it looks at evaluations 1, 2,
    4, 8, ... Tracking makes a run many times slower.

    Args:
        numpy: track numpy as well.
        most: evaluations of the watched map after which the block is left early.

    Examples:
        >>> meter = MemoryMeter()
        >>> with meter:
        ...     a = torch.zeros(1000)
        ...     b = a + 1
        >>> meter.peak
        8000
    """

    def __init__(self, numpy: bool = False, most: int = LONGEST) -> None:
        self.numpy_seen = False
        self._tracker = _StorageTracker()
        self._traces = numpy and not tracemalloc.is_tracing()
        self._most = most
        self._calls = 0
        self._numpy = 0
        self._python = 0

    @property
    def peak(self) -> int:
        """Bytes, torch and numpy."""
        return self._tracker.peak + self._numpy

    @property
    def now(self) -> int:
        """Bytes of torch held at this moment."""
        return self._tracker.now

    def restart_peak(self) -> int:
        """Forget the peak so far; return the bytes of torch held at this moment."""
        self._tracker.peak = self._tracker.now
        return self._tracker.now

    def watch(self, f: Map) -> Map:
        """Return ``f`` with its inside left out of the count and its result counted."""

        def watched(z: Tensor) -> Tensor:
            self._calls += 1
            if self._calls > self._most:
                raise _Enough
            if self._traces and self._calls & (self._calls - 1) == 0:
                self._look()
            with self._tracker.paused():
                fz = f(z)
            if isinstance(fz, Tensor):
                self._tracker.adopt(fz)
            return fz

        return watched

    def __enter__(self) -> MemoryMeter:
        self._tracker.__enter__()
        if self._traces:
            with self._tracker.paused():
                torch.zeros(0).add(0)  # the first operator under a dispatch mode imports a lot, slowly when traced
            tracemalloc.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> bool:
        self._tracker.__exit__(kind, *rest)
        if self._traces:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self._numpy = max(0, peak - self._python) if self.numpy_seen else 0
        return kind is _Enough

    def _look(self) -> None:
        held, _ = tracemalloc.get_traced_memory()
        traces = tracemalloc.take_snapshot().traces
        arrays = sum(t.size for t in traces if t.domain == np.lib.tracemalloc_domain)
        self.numpy_seen |= arrays > 0
        self._python = max(0, held - arrays)
        if self._calls == 1:
            tracemalloc.reset_peak()


class _Enough(BaseException):
    """Ends a run from inside f; no Exception, so that no solver takes it for a failure of f."""


class _StorageTracker(TorchDispatchMode):
    """Bytes of the storages that were born while it is active and not paused."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.now = 0
        self._live: dict[int, tuple[int, Any]] = {}
        self._asleep = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._asleep:
            return func(*args, **kwargs)
        for t in _tensors((args, kwargs)):
            self._enter(t, counts=False)
        out = func(*args, **kwargs)
        for t in _tensors(out):
            self._enter(t, counts=True)
        return out

    def adopt(self, t: Tensor) -> None:
        """Count a tensor that was made while paused."""
        self._enter(t, counts=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside."""
        self._asleep = True
        try:
            yield
        finally:
            self._asleep = False

    def _enter(self, t: Tensor, counts: bool) -> None:
        for part in _dense_parts(t):
            self._enter_dense(part, counts)

    def _enter_dense(self, t: Tensor, counts: bool) -> None:
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes() if counts else 0
        self._live[key] = size, weakref.ref(storage, partial(self._leave, key))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _leave(self, key: int, _: Any) -> None:
        size, _ref = self._live.pop(key)
        self.now -= size


def _dense_parts(t: Tensor) -> tuple[Tensor, ...]:
    """Return the dense tensors that a sparse one consists of, which has no storage; of a dense one itself."""
    if t.layout is torch.strided:
        return (t,)
    if t.layout is torch.sparse_coo:
        return (t._indices(), t._values())
    if t.layout in (torch.sparse_csr, torch.sparse_bsr):
        return (t.crow_indices(), t.col_indices(), t.values())
    if t.layout in (torch.sparse_csc, torch.sparse_bsc):
        return (t.ccol_indices(), t.row_indices(), t.values())
    return ()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among the arguments or results of an operator."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
