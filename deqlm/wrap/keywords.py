"""Keywords of one call that are options of other libraries, and that the map does not take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from deqlm_solvers.core.peer_names import HINTS

__all__ = ["refuse_peer_names"]


def refuse_peer_names(f: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
    """Raise where a keyword for ``f`` is no argument of it, but the name of an option in another library.

    Args:
        f: a module or a function.
        keywords: of the call, which go on to f.

    Raises:
        TypeError: with our name of that option.

    Examples:
        >>> refuse_peer_names(lambda z, m: z, {"m": 1})
        >>> refuse_peer_names(lambda z: z, {"f_max_iter": 1})
        Traceback (most recent call last):
        TypeError: unknown option 'f_max_iter', which is no argument of the map either: give it as stop=...
    """
    for name in keywords.keys() & HINTS.keys():
        if not _takes(f, name):
            raise TypeError(f"unknown option {name!r}, which is no argument of the map either: {HINTS[name]}")


def _takes(f: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(f.forward if isinstance(f, nn.Module) else f).parameters
    except (ValueError, TypeError):  # a function that does not tell
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
