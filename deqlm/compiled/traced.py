"""What the compiler sees: f at a point in the shape of the state, and the loop around it."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

__all__ = ["evaluate", "own_code", "solve_loop"]

F = TypeVar("F", bound=Callable[..., Any])


def evaluate(f: Callable[..., Any], inputs: tuple[Any, ...], z: Tensor, held: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return f at ``z``, in the shape of the state.

    Args:
        f: called as ``f(state, *inputs)``.
        inputs: what it gets besides.
        z: the point, in the dtype of the state.
        held: unknowns that stay where they are, bool, and where; None for none.
    """
    if held is not None:
        masked, at = held
        z = torch.where(masked, at, z)
    fz = f(z, *inputs)
    if fz.shape != z.shape or fz.dtype != z.dtype:
        raise ValueError("f changed the shape or the dtype of the state")
    return fz if held is None else torch.where(held[0], held[1], fz)


def solve_loop(
    f: Callable[..., Any],
    inputs: tuple[Any, ...],
    z: Tensor,
    drive: Tensor,
    held: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the last point of a solve from ``z``, in the shape of the state and the inner dtype.

    Args:
        f: the map.
        inputs: what it gets besides the state.
        z: start.
        drive: the state of the loop; see `deqlm_solvers.loop.program.Drive`.
        held: as for `evaluate`.
        dtype: of the state.
    """

    def goes_on(z: Tensor, more: Tensor) -> Tensor:
        return more > 0

    def once(z: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        point = z.to(dtype)
        fz = evaluate(f, inputs, point, held)
        z, more = torch.ops.deqlm.advance(drive, point.to(z.dtype), fz.to(z.dtype).contiguous())
        return z, more

    return while_loop(goes_on, once, (z, drive.new_ones(())))[0]  # type: ignore[no-any-return]


def own_code(function: F) -> F:
    """Return a copy of ``function`` with a code object of its own: torch counts recompilations by that."""
    made = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return made  # type: ignore[return-value]
