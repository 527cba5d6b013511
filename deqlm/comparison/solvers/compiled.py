"""The same solvers compiled, as further rows of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deqlm.compiled.settings import Compile
from deqlm.programs.compiling import CompiledSolve
from deqlm_solvers import Solution, Solve, Solver, Stop
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.loop.program import program_declines

__all__ = ["CompiledMaker", "CompiledRow", "compiled_makers"]

PREFIX = "compiled."
"""What stands before the name of a solver in the row of its compiled solve."""


class CompiledRow:
    """A solver whose solve of one map is a program, called as a `Solve` is; compiled at its first call.

    Args:
        solver: one that has a compiled step.
        stop: the stopping rule.
        f: the map, as torch's compiler sees it.
        settings: how it is compiled.

    Attributes:
        solver: likewise.
    """

    def __init__(self, solver: Solver, stop: Stop, f: Callable[[Tensor], Tensor], settings: Compile) -> None:
        self.solver = solver
        self._solve = CompiledSolve(f, solver=solver, stop=stop, on_failure="ignore", compile=settings)

    def __call__(self, f: Any, z0: Tensor) -> Solution:
        """Solve from ``z0`` (B, N); ``f`` is not read: a program has its own."""
        return self._solve.forward(z0, with_stats=True)[1]


CompiledMaker = tuple[str, Callable[[Stop, Callable[[Tensor], Tensor]], CompiledRow]]
"""The label of a row, and what makes it of a stopping rule and a map."""


def compiled_makers(makers: Sequence[tuple[str, Callable[[], Solver]]], settings: Compile) -> list[CompiledMaker]:
    """Return rows for those of ``makers``, labels with what makes a solver, whose solves can be compiled."""

    def row(make: Callable[[], Solver], stop: Stop, f: Callable[[Tensor], Tensor]) -> CompiledRow:
        return CompiledRow(make(), stop, f, settings)

    return [(f"{PREFIX}{label}", partial(row, make)) for label, make in makers if _can_be(make)]


def _can_be(make: Callable[[], Solver]) -> bool:
    try:
        solver = make()
    except Exception:  # a peer that is not installed, whose own row says so
        return False
    z0 = torch.zeros(1, 1, dtype=torch.float32, device="cpu")
    return not program_declines(Solve(solver).solver, Stop(), Layout(), z0)
