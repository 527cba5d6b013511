"""The steps of a solve once more, with a graph that is made in halves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deqlm_solvers import Evaluator, StepSolver

__all__ = ["Replayed"]


class Replayed:
    """The iteration of a solver whose number of steps is known for every row.

    Halves of it are checkpointed, and halves of these again when they are recomputed: of n steps about log2 n states
    and the graph of one evaluation are there at a time, and every evaluation is made at most log2 n times more.

    Args:
        solver: the update rule, differentiable.
        f: the map.
        steps: updates that each row takes, (B,).
        masked: unknowns that are held, (B, N), or None.

    Reference:
        A. Griewank (1992), Achieving logarithmic growth of temporal and spatial complexity in reverse automatic
        differentiation, Optim. Methods Softw. 1. Deviates: halves instead of binomial parts.
    """

    def __init__(self, solver: StepSolver, f: Evaluator, steps: Tensor, masked: Tensor | None) -> None:
        self.solver = solver
        self.f = f
        self.steps = steps[:, None]
        self.masked = masked

    def last(self, z0: Tensor) -> Tensor:
        """Return the last iterate of every row from ``z0`` (B, N), inner dtype."""
        count = int(self.steps.max()) if self.steps.numel() else 0
        return self._several(z0, self.solver.init(z0.detach()), 0, count)[0] if count else z0

    def straight(self, z0: Tensor, count: int) -> Tensor:
        """Return the last iterate after ``count`` steps at most, with the whole graph."""
        z, state = z0, self.solver.init(z0.detach())
        for k in range(count):
            z, state = self._step(z, state, k)
        return z

    def _several(self, z: Tensor, state: Any, k: int, count: int) -> tuple[Tensor, Any]:
        """Take ``count`` steps from step ``k`` on."""
        while count > 1:
            half = count // 2
            z, state = checkpoint(self._several, z, state, k, half, use_reentrant=False)  # type: ignore[misc]
            k, count = k + half, count - half
        return self._step(z, state, k)

    def _step(self, z: Tensor, state: Any, k: int) -> tuple[Tensor, Any]:
        at = self.f.at(z)
        at = at if self.masked is None else at.held(self.masked)
        z_next, state = self.solver.step(self.f, at, state)
        return torch.where(k < self.steps, z_next, at.z), state
