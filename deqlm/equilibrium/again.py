"""Compiled calls of a module that are like one before."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.compiled.compiler import Compiler
from deqlm.compiled.refused import NotCompiledError
from deqlm.gradients.base import Gradient
from deqlm.wrap.inject import Add, Argument
from deqlm_solvers import Solution, Solve

__all__ = ["refuse_chunks", "solve_again"]


def refuse_chunks(compiler: Compiler | None, mode: Any) -> None:
    """Refuse to compile a solve by chunks, which ``mode`` asks for."""
    if compiler is not None and not compiler.refused:
        compiler.refuse(NotCompiledError(f"mode={mode} solves chunk by chunk; 'simultaneous' is compiled"))


def solve_again(deq: Any, x: Any, args: tuple[Any, ...], how: Solve, method: Gradient, *others: Any) -> Solution | None:
    """Return the solution of a compiled call of a `DEQ` that is like one before in all but its numbers, or None.

    Args:
        deq: the module.
        x: its input.
        args: further arguments of the layer.
        how: solver and stop of the call.
        method: its gradient.
        *others: what else it was given; anything asks for the long way.
    """
    if deq.compiler is None or torch.is_grad_enabled() or any(other is not None and other != {} for other in others):
        return None
    simple = deq.start is None and deq.cap is None and not deq.causal and deq.batch_dims in (None, 1)
    known = type(deq.inject) in (Add, Argument) and isinstance(deq.layer, nn.Module)
    if not simple or not known or type(x) is not Tensor:
        return None
    z0 = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    return deq.compiler.again(partial(deq.inject.join, deq.layer), deq.layer, z0, (x, args, {}), how, method)
