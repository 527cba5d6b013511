"""Answers about classes and functions that are looked up once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["remembered"]

P = ParamSpec("P")
R = TypeVar("R")


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of hashable arguments whose answers are kept, but where a compiler follows the call.

    Examples:
        >>> @remembered
        ... def double(x):
        ...     return 2 * x
        >>> double(3)
        6
    """
    kept = functools.lru_cache(maxsize=256)(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs) if torch.compiler.is_dynamo_compiling() else kept(*args, **kwargs)

    return call
