"""Buffers of a module that an evaluation moves: found out by their values, put back, by one thread at a time."""

from __future__ import annotations

import math
import os
import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["Buffer", "Turn", "moved", "watch"]

TABLE = 2**20
"""Elements beyond which a buffer of a module in eval() is taken for a table or packed weights, and not copied."""


class Buffer:
    """A buffer by its place in a module, with the tensor and the value that it has now.

    Args:
        owner: the module.
        name: in it; there may be no buffer of that name.
    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner = owner
        self.name = name
        self.there = name in owner._buffers
        self._hook: Any = None
        if is_lazy(self._now):  # type: ignore[arg-type]
            # its first value is what a lazy module gives it, right before its first forward
            self._hook = owner.register_forward_pre_hook(lambda module, args: self._begin())
        self._note(known=self._hook is None)

    def replaced(self) -> bool:
        """Say whether it was reassigned or changed in place; running statistics change behind autograd's back."""
        now = self._now
        if self.there is not (self.name in self.owner._buffers):
            return True
        statistics = self.owner.training and getattr(self.owner, "track_running_stats", False)
        return now is not self.tensor or _version(now) != self.version or (now is not None and statistics)

    def differs(self) -> Tensor | bool:
        """Say whether its value is another one, which changes through ``.data`` leave no other trace of."""
        now, before = self.tensor, self.value
        if now is None or before is None or now.is_meta:
            return False
        if now.shape != before.shape or now.dtype != before.dtype or now.device != before.device:
            return True
        try:
            if before.device.type == "cpu" and torch.equal(now, before):
                return False
            change = now != before
            return (change & ((now == now) | (before == before))).any()
        except RuntimeError:  # a kind of tensor that cannot be compared
            return False

    def put_back(self) -> None:
        """Give the module its tensor with the first value again, or take away what was not there."""
        if not self.there:
            self.owner._buffers.pop(self.name, None)
            return
        self.owner._buffers[self.name] = self.tensor
        if self.tensor is None or self.value is None:
            return
        # through .data, because autograd may have saved the buffer and must not see it change
        if self.tensor.shape == self.value.shape:
            self.tensor.data.copy_(self.value)
        else:
            self.tensor.data = self.value.clone()

    def forget_hook(self) -> None:
        """Stop waiting for a lazy module."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @property
    def _now(self) -> Tensor | None:
        present = self.name in self.owner._buffers  # the table of a TorchScript module has no get()
        return self.owner._buffers[self.name] if present else None

    def _begin(self) -> None:
        self._note()
        self.forget_hook()

    def _note(self, known: bool = True) -> None:
        self.tensor = self._now
        copied = known and self.tensor is not None and (self.owner.training or math.prod(self.tensor.shape) <= TABLE)
        self.value = self.tensor.detach().clone() if copied and self.tensor is not None else None
        self.version = _version(self.tensor) if known else -1


def watch(module: nn.Module | None) -> list[Buffer]:
    """Return all buffers of a module and of the modules in it, as they are now."""
    return [Buffer(owner, name) for owner, name in _places(module)]


def moved(buffers: list[Buffer], module: nn.Module | None) -> list[Buffer]:
    """Return those of ``buffers`` that are not what they were, and those that ``module`` has got since.

    It takes one read for each device but the CPU.
    """
    known = {(id(buffer.owner), buffer.name) for buffer in buffers}
    found = [_new(owner, name) for owner, name in _places(module) if (id(owner), name) not in known]
    open_questions = []
    for buffer in buffers:
        buffer.forget_hook()
        answer = buffer.replaced() or buffer.differs()
        if isinstance(answer, Tensor) and answer.device.type != "cpu":
            open_questions.append((buffer, answer))
        elif answer:
            found.append(buffer)
    for device in {answer.device for _, answer in open_questions}:
        here = [(buffer, answer) for buffer, answer in open_questions if answer.device == device]
        answers = torch.stack([answer for _, answer in here]).tolist()
        found += [buffer for (buffer, _), answer in zip(here, answers, strict=True) if answer]
    return found


def _places(module: nn.Module | None) -> list[tuple[nn.Module, str]]:
    return [(part, name) for part in _owners(module) for name, _ in part._buffers.items()]


def _owners(module: nn.Module | None) -> list[nn.Module]:
    """Return the modules in a module that have buffers, itself included, each once."""
    owners, seen = [], set()
    left: list[nn.Module | None] = [module]
    while left:  # as nn.Module.modules does, which takes three times as long
        part = left.pop()
        if part is None or part in seen:
            continue
        seen.add(part)
        left += [inner for _, inner in part._modules.items()][::-1]
        if part._buffers:
            owners.append(part)
    return owners


def _new(owner: nn.Module, name: str) -> Buffer:
    """Return a buffer that was not there before."""
    made = Buffer(owner, name)
    made.there, made.tensor, made.value = False, None, None
    return made


def _version(t: Tensor | None) -> int:
    return -1 if t is None or t.is_inference() else t._version


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
        owners = _owners(module)
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
