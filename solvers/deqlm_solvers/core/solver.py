"""The contract of a solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.core.options import Options
from deqlm_solvers.core.registry import Registry
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop

__all__ = ["GUARANTEES", "SOLVERS", "Evaluation", "Map", "Solver", "register_solver"]

Map = Callable[[Tensor], Tensor]
"""A map on rows: (B, N) -> (B, N), same dtype and device, row by row unless the caller says otherwise."""

GUARANTEES = {
    "known_answers": "finds the known fixed points of linear and tanh contractions in float32 and float64",
    "rows": "changing or NaN-ing other rows leaves a row bit-equal; rows alone and together agree bit for bit",
    "check_every": "every check_every gives equal bits",
    "half": "takes bfloat16 and float16 states, with float32 inner algebra",
    "budget": "rtol=0, atol=0 makes exactly max_iter evaluations and steps",
    "lean": "operations and host syncs per evaluation stay within the budget of the contract suite",
    "differentiable": "its steps can be differentiated by autograd",
    "sequences": "solves recurrences along tokens as a loop over tokens does, each row by itself",
}
"""What a solver may promise beyond a true residual and true counts; the contract suite tests what is declared."""


class Evaluation:
    """One evaluation of the map, in the inner dtype (at least float32).

    Attributes:
        z: point, (B, N).
        fz: f(z), (B, N).
        jv: product of the Jacobian at z with the tangents that a step asked for, (B, N); None where it asked for none.
        masked: unknowns that are held, (B, N) bool, whose derivatives count for nothing; None where there are none.

    Examples:
        >>> import torch
        >>> at = Evaluation(torch.zeros(1, 2), torch.ones(1, 2))
        >>> at.r.tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, z: Tensor, fz: Tensor, jv: Tensor | None = None, masked: Tensor | None = None) -> None:
        self.z = z
        self.fz = fz
        self.jv = jv
        self.masked = masked

    @cached_property
    def r(self) -> Tensor:
        """f(z) - z, (B, N), computed when first asked for."""
        return self.fz - self.z

    @cached_property
    def r_norm(self) -> Tensor:
        """||f(z) - z|| of rows, (B,) float64, likewise."""
        return row_norms(self.r)

    @cached_property
    def fz_norm(self) -> Tensor:
        """||f(z)|| of rows, (B,) float64, likewise."""
        return row_norms(self.fz)

    @cached_property
    def z_norm(self) -> Tensor:
        """||z|| of rows, (B,) float64, likewise."""
        return row_norms(self.z)

    def held(self, masked: Tensor) -> Evaluation:
        """Return the same with f(z) = z, and no derivative, at ``masked`` (B, N) unknowns."""
        jv = None if self.jv is None else torch.where(masked, 0.0, self.jv)
        return Evaluation(self.z, torch.where(masked, self.z, self.fz), jv, masked)

    def detached(self) -> Evaluation:
        """Return the same values without a graph; self where there is none."""
        if not self.fz.requires_grad and not self.z.requires_grad:
            return self
        return Evaluation(self.z.detach(), self.fz.detach(), masked=self.masked)


class Solver(Options, ABC):
    """Anything that solves z = f(z) on rows. Subclass `StepSolver` for an update rule, this for a whole method.

    Class attributes:
        guarantees: names from `GUARANTEES` that hold; the contract suite tests exactly those. Options may take some
            away from an object.
        honours: fields of `Stop` that may differ from their default; any other non-default field raises.
        attempts: budgets of ``Stop.max_iter`` evaluations that a solve may spend.
        steps_evaluate: f may be evaluated beside the points that are tested; False lets finished rows leave the batch.

    Examples:
        >>> from deqlm_solvers import SOLVERS
        >>> sorted(SOLVERS["fixed_point"].guarantees)
        ['budget', 'check_every', 'differentiable', 'half', 'known_answers', 'lean', 'rows']
    """

    guarantees: ClassVar[frozenset[str]] = frozenset()
    honours: ClassVar[frozenset[str]] = frozenset()
    attempts: ClassVar[int] = 1
    steps_evaluate: ClassVar[bool] = True

    @abstractmethod
    def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
        """Solve z = f(z) from ``z0`` (B, N); the solution carries the true residual of its z and true counts."""

    def peak_bytes(self, rows: int, unknowns: int, dtype: torch.dtype, stop: Stop) -> int | None:
        """Return the most bytes that a solve holds at once: results of f included, the trace and f's inside left out.

        None, the default, says that the solver cannot tell: `forecast_solve` then rehearses a solver that is
        `rehearsable`, and the memory of any other one is unknown.
        """
        return None

    def for_layout(self, layout: Layout, stop: Stop) -> Solver:
        """Return the solver whose `peak_bytes` are those on rows of ``layout``; self where N tells it all."""
        return self

    def advice(self, status: Status) -> str:
        """Return what to try for rows that ended with ``status``, in one sentence; empty where that is no failure."""
        return status.hint

    def rehearsable(self) -> bool:
        """Say whether all its memory is torch's and in proportion to N, so that small solves show what it holds."""
        return False

    def buffers(self, rows: int, unknowns: int, dtype: torch.dtype) -> dict[str, int]:
        """Return the bytes of the buffers that a solve keeps, by name ("history", "gram"), where they can be told."""
        return {}


SOLVERS: Registry[Solver] = Registry("solver", Solver, "deqlm.solvers")
"""Every registered solver: iterate for names, index for the class."""

register_solver = SOLVERS.register
