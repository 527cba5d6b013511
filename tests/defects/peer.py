"""torchdeq run beside: its solvers and its module, as the checks of its defects call them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

with warnings.catch_warnings():
    # invalid escapes in its docstrings, an error where bytecode is made under warnings as errors
    warnings.simplefilter("ignore")
    import torchdeq
    import torchdeq.dropout
    import torchdeq.loss
    import torchdeq.norm
    from torchdeq.solver import get_solver

__all__ = ["deq", "point", "run", "torchdeq"]


def run(name: str, f: Callable[..., Tensor], z0: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what a solver of torchdeq returns, and its statistics."""
    z, _, info = get_solver(name)(f, z0, **options)
    return z, info


def deq(**options: Any) -> Any:
    """Return its module, solved as far as float64 goes unless told otherwise."""
    sharp = {"f_tol": 1e-12, "f_max_iter": 1000, "b_tol": 1e-13, "b_max_iter": 1000}
    return torchdeq.get_deq(**{**sharp, **options})


def point(module: Any, f: Callable[..., Any], z0: Any) -> Any:
    """Return the last state that its module returns."""
    states, _ = module(f, z0)
    return states[-1]
