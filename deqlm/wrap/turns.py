"""One call at a time moves the buffers of a layer, however many threads call it."""

from __future__ import annotations

import os
import threading
from weakref import WeakKeyDictionary

import torch
from torch import nn

__all__ = ["Turn"]


class Turn:
    """The right to move the buffers of a module, which one thread has at a time; a thread may take it again.

    Each module that owns buffers has a lock of its own, so that layers that share a part take turns as well. A module
    without a part in train() moves nothing that threads could take from each other, and has no turns. Where autograd's
    thread of a device evaluates again, it does not wait: the thread that has the turn may wait for it.

    Args:
        module: whose buffers are moved; None has none.
        device: of the state.
    """

    def __init__(self, module: nn.Module | None, device: torch.device) -> None:
        owners = [] if module is None else [part for part in module.modules() if part._buffers]
        moving = any(part.training for part in owners)
        # taken in the same order by all, so that no two threads wait for each other
        self._locks = sorted(map(_lock_of, owners), key=id) if moving else []
        self._device = device
        self._taken = 0

    def take(self) -> None:
        """Wait for the turn."""
        own_thread = self._device.type == "cpu" or torch._C._current_graph_task_id() == -1  # type: ignore[attr-defined]
        if self._locks and own_thread:
            for lock in self._locks:
                lock.acquire()
            self._taken += 1

    def end(self) -> None:
        """Let the next thread have it; nothing where it was ended before."""
        if self._taken:
            self._taken -= 1
            for lock in self._locks:
                lock.release()


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()  # type: ignore[valid-type]
_guard = threading.Lock()


def _lock_of(module: nn.Module) -> threading.RLock:  # type: ignore[valid-type]
    # beside the module, not on it: modules are copied and pickled, locks are not
    with _guard:
        return _locks.setdefault(module, threading.RLock())


def _renew() -> None:
    """Forget the locks of threads that a forked child does not have."""
    global _guard
    _guard = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
