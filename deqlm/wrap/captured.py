"""Calls without grad as graphs: captured once per shape of the input, and replayed on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from deqlm.wrap.trees import map_tensors, tensors

__all__ = ["GRAPHS", "Captured", "Graph"]

MOST = 8
"""Graphs that are kept, each with its own memory; the one that was used longest ago goes."""


class Graph(Protocol):
    """A recording of operations on a device."""

    def warm_up(self, run: Callable[[], Any]) -> Any:
        """Return ``run()``, called beside the work of the device, so that libraries take what they need."""
        ...

    def capture(self) -> AbstractContextManager[Any]:
        """Return a context whose operations are recorded; what the host would read there is an error."""
        ...

    def replay(self) -> None:
        """Do the recorded operations again, on the same memory."""
        ...


class CudaGraph:
    """A CUDA graph.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graph = torch.cuda.CUDAGraph()

    def warm_up(self, run: Callable[[], Any]) -> Any:
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run()
                out = run()
            torch.cuda.current_stream().wait_stream(side)
        return out

    @contextmanager
    def capture(self) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.graph(self.graph):
            yield

    def replay(self) -> None:
        self.graph.replay()


GRAPHS: dict[str, Callable[[torch.device], Graph]] = {"cuda": CudaGraph}
"""What captures, by the type of the device."""


class _Recording(NamedTuple):
    """A graph, the memory that it reads its input from, and what it writes."""

    graph: Graph
    given: list[Tensor]
    made: Any


class Captured:
    """Runs a function of tensors as a graph, captured anew for every shape, dtype and place of what it is given.

    The first call with a shape runs the function as it is, before it is captured. Results are copies: a later call
    changes no earlier one. Parameters that change in place are seen by the graph; what lies elsewhere since is captured
    anew.

    Examples:
        >>> Captured().size
        0
    """

    def __init__(self) -> None:
        self._recordings: dict[Any, _Recording] = {}

    @property
    def size(self) -> int:
        """How many graphs are held."""
        return len(self._recordings)

    def __deepcopy__(self, memo: Any) -> Captured:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def call(
        self, run: Callable[[Any], Any], given: Any, module: nn.Module, settings: Any, check: Callable[[], None]
    ) -> Any:
        """Return ``run(given)``, with every tensor in it a copy.

        Args:
            run: computes without a graph of autograd; called on memory of its own.
            given: a tree of tensors.
            module: whose parameters and buffers it reads.
            settings: what the result depends on besides; compared by equality.
            check: raises where what ``run`` did, before it is captured, cannot be replayed.

        Raises:
            ValueError: no tensor, or tensors of a device that has no graphs.
            RuntimeError: ``run`` does what cannot be captured, such as to let the host read a number.
        """
        flat = list(tensors(given))
        key = _key(flat, module, settings)
        recording = self._recordings.pop(key, None)
        if recording is None:
            recording = self._record(run, given, flat, check)
        self._recordings[key] = recording
        while len(self._recordings) > MOST:
            del self._recordings[next(iter(self._recordings))]
        for slot, t in zip(recording.given, flat, strict=True):
            slot.copy_(t)
        recording.graph.replay()
        return map_tensors(Tensor.clone, recording.made)

    def _record(
        self, run: Callable[[Any], Any], given: Any, flat: list[Tensor], check: Callable[[], None]
    ) -> _Recording:
        device = _one_device(flat)
        graph = GRAPHS[device.type](device)
        slots: list[Tensor] = []

        def slot(t: Tensor) -> Tensor:
            slots.append(t.detach().clone(memory_format=torch.preserve_format))
            return slots[-1]

        held = map_tensors(slot, given)
        graph.warm_up(lambda: run(held))
        check()
        try:
            with graph.capture():
                made = run(held)
        except Exception as error:
            raise RuntimeError(
                f"graph=True: this call cannot be captured ({type(error).__name__}: {error}). What runs in a graph may "
                "not let the host read a number of the device (if t.any(), .item(), t[mask], .cpu()), nor bring "
                "numbers to it, nor change its shapes with them; graph=False calls it as it is"
            ) from error
        return _Recording(graph, slots, made)


def _one_device(flat: list[Tensor]) -> torch.device:
    places = {t.device for t in flat}
    if not places:
        raise ValueError("graph must be False for a call without a tensor")
    known = " or ".join(sorted(GRAPHS))
    if len(places) > 1 or next(iter(places)).type not in GRAPHS:
        named = ", ".join(sorted(map(str, places)))
        raise ValueError(f"graph must be False unless all tensors are on one {known} device, got {named}")
    return places.pop()


def _key(flat: list[Tensor], module: nn.Module, settings: Any) -> Any:
    """Return what a recording is good for."""
    shapes = tuple((t.shape, t.stride(), t.dtype, t.device) for t in flat)
    held = tuple((t.data_ptr(), t.dtype, t.shape) for t in (*module.parameters(), *module.buffers()))
    modes = tuple(part.training for part in module.modules())
    kind = flat[0].device.type if flat else "cpu"
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return shapes, held, modes, autocast, torch.is_inference_mode_enabled(), settings
