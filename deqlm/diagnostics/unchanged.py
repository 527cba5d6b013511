"""Leave no trace: generators and buffers are what they were when a diagnosis is over, and in every solve of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from deqlm.wrap.generators import every_accelerator, generator_states, set_generator_states

__all__ = ["Snapshot", "modules_of", "unchanged"]


class Snapshot:
    """The generators of torch, numpy and `random`, and the buffers of the modules that f shows.

    Args:
        f: module, bound method of one, or function whose closure holds some.
    """

    def __init__(self, f: Callable[..., Any]) -> None:
        self.buffers = [
            (part, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in modules_of(f)
            for part in module.modules()
            for name, buffer in part._buffers.items()
        ]
        self.python, self.numpy = random.getstate(), np.random.get_state()
        self.devices = every_accelerator(started=True)
        self.torch = generator_states(self.devices)

    def restore(self) -> None:
        """Put everything back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        set_generator_states(self.torch, self.devices)
        for part, name, buffer, value in self.buffers:
            part._buffers[name] = buffer
            if buffer is not None and value is not None:
                buffer.data.copy_(value)


@contextmanager
def unchanged(f: Callable[..., Any]) -> Iterator[Snapshot]:
    """Put back at the end what a `Snapshot` of f holds; yields it."""
    snapshot = Snapshot(f)
    try:
        yield snapshot
    finally:
        snapshot.restore()


def modules_of(f: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that a callable shows: itself, the owner of the method, those in its closure."""
    cells = [_content(cell) for cell in getattr(f, "__closure__", None) or ()]
    return [each for each in (f, getattr(f, "__self__", None), *cells) if isinstance(each, nn.Module)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None
