"""Which solves the checks may ask for: how long they are, and what is set in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import torch

from deqlm_solvers import Solve, Solver, StepSolver, Stop

__all__ = ["honours", "lengths", "refuses"]


def lengths(solver: Solver, rtol: float) -> Iterator[Stop]:
    """Yield short and long solves; only a solver with a `solve` of its own may refuse what is too short for it."""
    may_refuse = type(solver).solve is not StepSolver.solve
    for most in (1, 2, 7, 60):
        stop = Stop(max_iter=most, rtol=rtol)
        if most == 60 or not (may_refuse and refuses(solver, stop, unknowns=12)):
            yield stop


def honours(solver: Solver, stop: Stop) -> bool:
    """Say whether the solver declares what ``stop`` sets besides ``max_iter`` and ``rtol``, which are asked of all."""
    declared = solver.honours | {"max_iter", "rtol"}
    return all(f.name in declared or getattr(stop, f.name) == f.default for f in fields(stop))


def refuses(solver: Solver, stop: Stop, unknowns: int) -> bool:
    """Say whether ``stop.max_iter`` is too small for a solve of that many unknowns."""
    try:
        Solve(solver, stop)(lambda z: 0.5 * z + 1, torch.zeros(1, unknowns, dtype=torch.float64))
    except ValueError as refusal:
        return str(refusal).startswith("max_iter must be")
    return False
