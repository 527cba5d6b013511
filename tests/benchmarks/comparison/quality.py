"""How many of fifty problems each solver solves, by the true residual of what it returns."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison.maps import true_residual
from benchmarks.comparison.quality_maps import QualityProblem, all_problems
from deqlm_solvers import SOLVERS, Solve, Stop

__all__ = ["OURS", "SOLVER_NAMES", "default_solver", "measure_quality"]

OURS = ("anderson", "newton_krylov", "fallback", "broyden", "fixed_point", "newton")
"""Our own rows; those that this version does not have are left out."""

PEERS = (
    "torchdeq.broyden",
    "torchdeq.anderson",
    "torchdeq.fixed_point_iter",
    "scipy.krylov",
    "scipy.broyden2",
    "scipy.anderson",
)
SOLVER_NAMES = (*OURS, *PEERS)

JOINT = 2048
"""Unknowns of all rows up to which scipy, which takes them as one problem, is asked."""

DENSE = 256
"""Unknowns of a row up to which a dense Newton step is asked."""

SLACK = 1.05


def measure_quality(
    problems: Iterable[QualityProblem] | None = None,
    solvers: Iterable[str] = SOLVER_NAMES,
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.float64),
    step: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Return per problem, dtype and solver whether every row was solved, its evaluations and seconds.

    Examples:
        >>> problem = QualityProblem("half", lambda z: 0.5 * z + 1, torch.zeros(2, 3))
        >>> found = measure_quality([problem], ["anderson"], [torch.float64])
        >>> found["entries"][0]["solved"], found["entries"][0]["evaluations"]
        (True, 3)
    """
    chosen = [name for name in solvers if name in SOLVERS]
    entries = []
    for problem in all_problems() if problems is None else problems:
        step(problem.name)
        for dtype in dtypes:
            for name in chosen:
                if feasible(name, problem):
                    entries.append(_solve(name, problem, dtype))
    return {"solvers": chosen, "absent": [n for n in solvers if n not in SOLVERS], "entries": entries}


def default_solver() -> str:
    """Return the name of the solver that `deqlm.solve` takes when none is said."""
    return Solve().solver.name


def feasible(name: str, problem: QualityProblem) -> bool:
    """Say whether a method is asked for a problem of this size."""
    if name.startswith("scipy."):
        return problem.start.numel() <= JOINT
    return name != "newton" or problem.start.shape[1] <= DENSE


def _solve(name: str, problem: QualityProblem, dtype: torch.dtype) -> dict[str, Any]:
    tol = 1e-5 if dtype == torch.float32 else 1e-10
    entry: dict[str, Any] = {
        "problem": problem.name,
        "dtype": str(dtype).removeprefix("torch."),
        "solver": name,
        "rows": problem.start.shape[0],
        "solved": False,
        "good_rows": 0,
        "evaluations": 0,
        "message": "",
    }
    calls = 0

    def counted(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.f(z)

    begun = time.process_time()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stop = Stop(max_iter=problem.max_iter(dtype), rtol=tol)
            z = Solve(name, stop)(counted, problem.start.to(dtype)).z  # type: ignore[arg-type]
    except Exception as error:  # a peer may raise anything
        entry["message"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return entry
    good = true_residual(problem.f, z) <= SLACK * tol
    return {
        **entry,
        "seconds": time.process_time() - begun,
        "evaluations": calls,
        "good_rows": int(good.sum()),
        "solved": bool(good.all()),
    }
