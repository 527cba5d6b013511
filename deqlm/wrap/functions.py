"""What a plain function reads beside its arguments."""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

__all__ = ["package_of", "reads"]


def reads(f: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function closes over, the globals that its code loads, and its defaults, by name.

    Examples:
        >>> seen = []
        >>> [name for name, _ in reads(lambda z, k=2: seen.append(k * z))]
        ['seen', 'k']
    """
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in _globals(f.__code__):
        if name in f.__globals__:
            yield name, f.__globals__[name]
    defaults = f.__defaults__ or ()
    arguments = f.__code__.co_varnames[: f.__code__.co_argcount]
    yield from zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)
    yield from (f.__kwdefaults__ or {}).items()


def package_of(value: Any) -> str:
    """Return the package in which a function or class was written.

    Examples:
        >>> import torch
        >>> package_of(torch.nn.functional.dropout), package_of(dict)
        ('torch', 'builtins')
    """
    return str(getattr(value, "__module__", "")).partition(".")[0]


@functools.lru_cache(maxsize=4096)
def _globals(code: CodeType) -> tuple[str, ...]:
    """Return the globals that a function loads, those of the functions in it included; no names of attributes."""
    names = {each.argval: None for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names.update(dict.fromkeys(_globals(inner)))
    return tuple(names)
