"""Solves run eagerly inside models that are compiled as a whole; layers may be compiled programs themselves."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch

__all__ = ["asked_again", "eagerly"]

P = ParamSpec("P")
R = TypeVar("R")

WHY = (
    "a solve ends when values say so, and a graph of torch.compile cannot ask them: it runs eagerly between graphs. "
    "Leave out fullgraph=True, or compile the layer alone, DEQ(torch.compile(layer, fullgraph=True))"
)


def eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that `torch.compile` must not look into: a clean break in the graph of the caller.

    A solve ends when values say so, and ties itself to autograd by the graph of one evaluation, which a compiler does
    not show. A layer that is compiled itself stays compiled. With fullgraph=True, torch's error tells why.

    Examples:
        >>> @eagerly
        ... def double(x):
        ...     return 2 * x
        >>> double(3)
        6
    """
    # torch.compiler.disable, but loaded when a compiler first meets it
    apart: Any = torch._disable_dynamo(function)  # pyright: ignore[reportPrivateImportUsage]
    apart._torchdynamo_disable, apart._torchdynamo_disable_msg = True, WHY

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return apart(*args, **kwargs) if torch.compiler.is_dynamo_compiling() else function(*args, **kwargs)

    return call


def asked_again() -> AbstractContextManager[Any]:
    """Return a context in which layers are compiled so that their backward may run more than once.

    By default torch's compiler gives the buffers of a graph away in its first backward, and an adjoint solve asks
    dozens of times. Nothing where no compiler is loaded.

    Examples:
        >>> with asked_again():
        ...     pass
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    config: Any = importlib.import_module("torch._functorch.config")
    return config.patch(donated_buffer=False) if config.donated_buffer else nullcontext()
