"""Solves run eagerly inside models that are compiled as a whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["eagerly"]

P = ParamSpec("P")
R = TypeVar("R")


def eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that `torch.compile` must not look into: a clean break in the graph of the caller.

    A solve ends when values say so, and ties itself to autograd by the graph of one evaluation, which a compiler does
    not show. A layer that is compiled itself stays compiled.

    Examples:
        >>> @eagerly
        ... def double(x):
        ...     return 2 * x
        >>> double(3)
        6
    """
    # torch.compiler.disable, but loaded when a compiler first meets it
    apart = torch._disable_dynamo(function)  # pyright: ignore[reportPrivateImportUsage]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return apart(*args, **kwargs) if torch.compiler.is_dynamo_compiling() else function(*args, **kwargs)

    return call
