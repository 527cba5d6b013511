"""Tensors with a graph that an evaluation left somewhere: auxiliary losses, statistics, activations, caches."""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from deqlm.wrap.functions import package_of, reads

__all__ = ["left_by"]

DEPTH = 5
"""How many containers, objects and functions are looked into, one within the other."""
NEWEST = 64
"""Elements of a container that are looked at, from its end."""
PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, ModuleType, nn.Parameter})
_EVERY_MODULE = frozenset(vars(nn.Module()))
"""What every module has; of that, hooks and buffers are looked at."""
_TABLES = tuple(_EVERY_MODULE - {"_parameters", "_modules", "training"})
BUILT_IN = frozenset({dict, OrderedDict, list, tuple, set, frozenset, deque})


def left_by(layer: Any) -> list[Tensor]:
    """Return the tensors with a graph that can be reached from a layer: where it may have left some, or holds some.

    Looked into are the attributes of all submodules and of their classes, what functions read (those that are layers,
    hooks, and methods of the user's classes), and containers and plain objects among these.

    Examples:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2)
        >>> layer.stats = {"losses": [layer(torch.ones(1, 2)).square().mean()]}
        >>> len(left_by(layer))
        1
    """
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    todo: list[tuple[Any, int]] = [(layer, DEPTH)]
    while todo:
        value, depth = todo.pop()
        seen.add(id(value))
        for part in _parts(value):
            kind = type(part)
            if kind in PLAIN or (kind in BUILT_IN and not part):
                continue
            if isinstance(part, Tensor):
                if part.grad_fn is not None:
                    found[id(part)] = part
            elif id(part) not in seen:
                # a module is as deep as the one that holds it
                left = depth if isinstance(part, nn.Module) else depth - 1
                if left:
                    todo.append((part, left))
    return list(found.values())


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, nn.Module):
        return _of_module(value)
    if isinstance(value, Mapping):
        return _newest(value.values())
    if isinstance(value, list | tuple | deque):
        return _newest(value)
    if isinstance(value, set | frozenset):
        return islice(value, NEWEST)
    if isinstance(value, FunctionType):
        return () if _is_known(value) else (part for _, part in reads(value))
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    return () if isinstance(value, type) else _attributes(value)


def _newest(values: Any) -> Iterable[Any]:
    try:
        return list(islice(reversed(values), NEWEST))
    except (TypeError, RuntimeError):  # a mapping without order, or one that changes meanwhile
        return ()


def _of_module(module: nn.Module) -> Iterator[Any]:
    own = vars(module)
    yield from [own[name] for name in own.keys() - _EVERY_MODULE]
    yield from [table for name in _TABLES if (table := own.get(name))]
    yield from module._modules.values()
    yield from _of_class(type(module))


def _attributes(value: Any) -> Iterator[Any]:
    """Yield the attributes of an object, and those that it shares with its class, where that is a user's."""
    yield from list(getattr(value, "__dict__", {}).values())
    for kind in _users(type(value)):
        yield from (getattr(value, name, None) for name in _slots(kind))
    yield from _of_class(type(value))


def _of_class(kind: type) -> Iterator[Any]:
    for each in _users(kind):
        yield from list(vars(each).values())


@functools.lru_cache(maxsize=1024)
def _users(kind: type) -> tuple[type, ...]:
    """Return a class and its bases, but for those of Python, of torch and of this library."""
    return tuple(each for each in kind.__mro__ if not _is_known(each))


def _slots(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else (name for name in slots if not name.startswith("__"))


def _is_known(value: Any) -> bool:
    """Say whether a function or class is one of Python's, of torch's or of this library, which leave nothing."""
    return package_of(value) in ("builtins", "torch", "deqlm", "deqlm_solvers")
