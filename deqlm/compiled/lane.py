"""A short way for calls without grad that are like one before: what has been looked at is not looked at again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.compiled.program import Program
from deqlm.compiled.refused import modes_of
from deqlm.gradients.forward_mode import in_forward_mode
from deqlm_solvers import Layout, Solution, Solve
from deqlm_solvers.core.kinds import in_transform
from deqlm_solvers.loop.program import run_from

__all__ = ["Lane"]


@dataclass(frozen=True, eq=False)
class Lane:
    """Solves as a call before did, where nothing but the numbers has changed.

    Attributes:
        how: solver and stop, with a number for its tolerance.
        loop: the program.
        modes: what parts of the layer were, by `modes_of`.
        layout: what rows stand for.
        eps: of the dtype of the state.
        quiet: whether rows may fail without a word.
        fitted: the update rule for so many unknowns.
    """

    how: Solve
    loop: Program
    modes: tuple[Any, ...]
    layout: Layout
    eps: float
    quiet: bool
    fitted: Any

    def __call__(
        self, bare: Callable[..., Any], module: nn.Module | None, z0: Tensor, inputs: tuple[Any, ...]
    ) -> Solution | None:
        """Solve from ``z0``, contiguous, in the shape of the state; None where the long way has something to say.

        Args:
            bare: f, for the program.
            module: whose hooks and modes are looked at, or None.
            z0: the start.
            inputs: what f gets besides.
        """
        if module is not None and modes_of(module) != self.modes:
            return None
        if torch.is_autocast_enabled("cpu") or in_forward_mode() or in_transform(z0):
            return None
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                sol = self._solve(bare, z0.clone(), inputs)
        else:
            sol = self._solve(bare, z0, inputs)
        return sol if self.quiet or not bool(sol.failed.any()) else None

    def _solve(self, bare: Callable[..., Any], z0: Tensor, inputs: tuple[Any, ...]) -> Solution:
        shape, dtype = z0.shape, z0.dtype

        def program(z: Tensor, drive: Tensor) -> Tensor:
            return self.loop(bare, inputs, z.view(shape), drive, None, dtype).view(z.shape)

        z = z0.view(shape[0], shape[1:].numel())
        sol = run_from(self.fitted, self, program, z, self.how.stop, self.layout, dtype)
        return sol.replace(z=sol.z.view(shape), solver=self.how.solver)
