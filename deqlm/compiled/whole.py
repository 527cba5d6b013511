"""A solve from its input to its answer as one module that torch can export: it starts, stops and reports by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.compiled.traced import solve_loop
from deqlm.wrap.inject import Inject
from deqlm_solvers.core.dtypes import inner_dtype

__all__ = ["WholeSolve"]


class WholeSolve(nn.Module):
    """x, *args -> (value, status, steps, residual, relative), without grad.

    Args:
        layer: what is solved.
        inject: how x enters.
        start: u -> the start, in the shape of the state.
        recipe: see `deqlm_solvers.loop.program.recipe`.
    """

    def __init__(self, layer: nn.Module, inject: Inject, start: Callable[[Any], Tensor], recipe: Tensor) -> None:
        super().__init__()
        self.layer, self.inject, self.start = layer, inject, start
        self.register_buffer("recipe", recipe)

    def forward(self, x: Any, *args: Any) -> tuple[Tensor, ...]:
        """Solve; all but the value have one entry per row, as in `Solution`."""
        u = self.inject(x)
        z0 = self.start(u)
        begun = z0.to(inner_dtype(z0.dtype)).contiguous()
        drive = torch.ops.deqlm.open(begun, self.recipe)
        last = solve_loop(partial(self.inject.join, self.layer), (u, args, {}), begun, drive, None, z0.dtype)
        z, residual, relative, steps, status = torch.ops.deqlm.finish(drive, last, begun)
        return z.to(z0.dtype), status, steps, residual, relative
