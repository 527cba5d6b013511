"""Modules that a plain function uses: found, so that their buffers are held, and told to whoever misses them."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from deqlm.wrap.functions import package_of, reads

__all__ = ["hidden_modules", "reached", "warn_of_hidden"]

DEPTH = 4
"""How many functions, containers and objects are looked into, one within the other."""
LIBRARIES = frozenset({"builtins", "torch"})
"""Packages whose functions and objects use no module of a user's that is not looked at anyway."""
_PLAIN = frozenset({Tensor, nn.Parameter, ModuleType, type(None), bool, int, float, complex, str, bytes})
"""Types that hold no module."""
FIRST = 256
"""Elements of a container that are looked at."""


def warn_of_hidden(name: str, f: Any, *, stacklevel: int) -> None:
    """Warn if ``f`` is a function that uses modules with parameters or buffers.

    Args:
        name: of the option that it was given for.
        f: a callable; a module holds its own parts, and no warning is due.
        stacklevel: as for `warnings.warn`, seen from the caller.
    """
    found = hidden_modules(f)
    if found:
        uses = " and ".join(f"{where!r} ({type(module).__name__})" for where, module in found.items())
        text = (
            f"{name} is a function that uses the module {uses}, which is no part of this DEQ: parameters(), "
            "state_dict(), to() and train() do not reach it. Give the module, DEQ(module), or an nn.Module that owns "
            "it and whose forward does what the function does"
        )
        warnings.warn(text, UserWarning, stacklevel=stacklevel + 1)


def hidden_modules(f: Any) -> dict[str, nn.Module]:
    """Return the modules with parameters or buffers that a function reads, by the names under which it does.

    It looks at what the function closes over, its defaults, the globals that its code loads, the owner of a method, and
    what a `functools.partial` or another object of the user's holds. A module whose ``__init__`` is running is left
    out: a layer that it makes of its own method becomes its part.

    Examples:
        >>> mlp = nn.Linear(3, 3)
        >>> list(hidden_modules(lambda z: mlp(z))), hidden_modules(nn.Linear(3, 3)), hidden_modules(max)
        (['mlp'], {}, {})
    """
    if isinstance(f, nn.Module):
        return {}
    found: dict[str, nn.Module] = {}
    for name, module in _walk(f, "", DEPTH, set()):
        known = any(module is other for other in found.values())
        if not known and _holds(module) and not _is_being_made(module):
            found[name] = module
    return found


def reached(f: Any) -> nn.Module | None:
    """Return what an evaluation of ``f`` may change: the module that it is, or all that a function reads, in one.

    Examples:
        >>> tanh, mlp = nn.Tanh(), nn.Linear(3, 3)
        >>> reached(tanh) is tanh, reached(lambda z: tanh(mlp(z))), reached(max)
        (True, ModuleList(...), None)
    """
    if isinstance(f, nn.Module):
        return f
    found = list({id(module): module for _, module in _walk(f, "", DEPTH, set())}.values())
    return found[0] if len(found) == 1 else nn.ModuleList(found) if found else None


def _walk(value: Any, name: str, depth: int, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield name, value
    elif depth and id(value) not in seen:
        seen.add(id(value))
        for inner, part in _parts(value, name):
            if type(part) not in _PLAIN:
                yield from _walk(part, inner, depth - 1, seen)


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Return what a function, a container or a callable object holds, by name."""
    if isinstance(value, FunctionType):
        yield from () if package_of(value) in LIBRARIES else reads(value)
    elif isinstance(value, MethodType):
        yield f"{value.__func__.__name__}.__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield from [("func", value.func), *(("args", each) for each in value.args), *value.keywords.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((name, each) for each in islice(value, FIRST))
    elif isinstance(value, Mapping):
        yield from ((name, each) for each in islice(value.values(), FIRST))
    elif not isinstance(value, Tensor | ModuleType | type) and package_of(type(value)) not in LIBRARIES:
        yield from list(getattr(value, "__dict__", {}).items())


def _holds(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _is_being_made(module: nn.Module) -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        first = frame.f_code.co_varnames[:1]
        if frame.f_code.co_name == "__init__" and first and frame.f_locals.get(first[0]) is module:
            return True
        frame = frame.f_back
    return False
