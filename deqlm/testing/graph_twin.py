"""A graph on the CPU: records operations, forbids reads by the host, and replays on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deqlm.testing.device import HostReadError, SimulatedDevice
from deqlm.wrap.captured import GRAPHS

__all__ = ["GraphTwin", "graphs_on_the_cpu"]


class GraphTwin:
    """Stands for a CUDA graph in tests: the same calls, and the same mistakes are errors.

    A replay does the recorded operations again and writes their results where they were, so a result that was computed
    on the host while recording, or read from memory that is not the graph's, shows.

    Args:
        device: the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.replays = 0
        self._recorder = _Recorder()

    def warm_up(self, run: Callable[[], Any]) -> Any:
        run()
        return run()

    @contextmanager
    def capture(self) -> Iterator[None]:
        generator = torch.get_rng_state()
        with SimulatedDevice(forbid=True), self._recorder:
            yield
        if not torch.equal(generator, torch.get_rng_state()):
            raise RuntimeError("noise was drawn, and generators were set, while capturing")

    def replay(self) -> None:
        self.replays += 1
        self._recorder.replay()


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name == "aten::lift_fresh":
            raise HostReadError("numbers of the host become a tensor (torch.tensor, torch.as_tensor) while capturing")
        out = func(*args, **kwargs)
        if not func.is_view and func._schema.name != "aten::detach":
            new = [] if func._schema.is_mutable else _flat(out)
            self.operations.append((func, args, kwargs, new))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self.operations:
            out = func(*args, **kwargs)
            for old, new in zip(made, _flat(out) if made else [], strict=True):
                if not old._is_zerotensor() and old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                    old.copy_(new)


def _flat(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [t for each in out for t in _flat(each)] if isinstance(out, tuple | list) else []


@contextmanager
def graphs_on_the_cpu() -> Iterator[list[GraphTwin]]:
    """Let ``graph=True`` capture on the CPU by twins inside a ``with`` block, and yield those made.

    Examples:
        >>> import deqlm
        >>> layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        >>> deq = deqlm.DEQ(layer, solver="fixed_point", stop=deqlm.Stop(max_iter=5, rtol=0), graph=True).eval()
        >>> with graphs_on_the_cpu() as made, torch.no_grad():
        ...     _ = deq(torch.ones(2, 4)), deq(torch.zeros(2, 4))
        >>> [twin.replays for twin in made]
        [2]
    """
    made: list[GraphTwin] = []

    def make(device: torch.device) -> GraphTwin:
        made.append(GraphTwin(device))
        return made[-1]

    GRAPHS["cpu"] = make
    try:
        yield made
    finally:
        del GRAPHS["cpu"]
