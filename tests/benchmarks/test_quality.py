"""How many of thirty problems each solver solves, and which of the literature's.

pytest -m bench -s tests/benchmarks/test_quality.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.comparison.quality_maps import problems
from deqlm.comparison import compare_literature
from deqlm.comparison.literature.contenders import is_peer, own
from deqlm_solvers import Anderson, Broyden, Fallback, FixedPoint, NewtonKrylov, Solve, Solver, Stop

SOLVERS: dict[str, tuple[Solver, int, int]] = {
    "fixed_point": (FixedPoint(), 22, 19),
    "anderson": (Anderson(), 30, 29),
    "anderson 5": (Anderson(memory=5), 29, 28),
    "anderson 25": (Anderson(memory=25), 30, 30),
    "broyden": (Broyden(), 30, 30),
    "broyden bad": (Broyden(update="bad"), 30, 29),
    "broyden armijo": (Broyden(line_search="armijo"), 28, 25),
    "newton_krylov": (NewtonKrylov(), 30, 30),
    "fallback": (Fallback(), 30, 30),
}
"""Solver, and how many problems it is known to solve in float32 and float64."""


@pytest.mark.bench
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SOLVERS)
def test_solved_problems(name: str, dtype: torch.dtype) -> None:
    """Solved: the true relative residual of every row, f in float64, within 1.05 of the tolerance."""
    solver, *known = SOLVERS[name]
    tol = 1e-5 if dtype == torch.float32 else 1e-10
    solved, unsolved = 0, []
    with torch.no_grad():
        for problem in problems():
            stop = Stop(max_iter=problem.max_iter(dtype), rtol=tol)
            sol = Solve(solver, stop)(problem.f, problem.start.to(dtype))
            z = sol.z.double()
            fz = problem.f(z)
            good = (fz - z).norm(dim=1) <= 1.05 * tol * fz.norm(dim=1)
            solved += bool(good.all())
            if not good.all():
                unsolved.append(f"{problem.name} ({int(good.sum())} of {len(good)} rows)")
    print(f"\n{name} {dtype}: {solved} solved; not: {', '.join(unsolved) or 'none'}")
    assert solved >= known[dtype == torch.float64]


@pytest.mark.bench
def test_no_problem_of_the_literature_is_lost() -> None:
    """What our solvers solve according to docs/records/literature.json they still solve, in the same form."""
    record = json.loads((Path(__file__).resolve().parents[2] / "docs/records/literature.json").read_text())
    recorded = {
        (problem["label"], entry["solver"], entry["form"])
        for problem in record["problems"]
        for entry in problem["entries"]
        if entry["outcome"] == "solved" and not is_peer(entry["solver"])
    }
    found = compare_literature(solvers=list(own()), progress=False)
    print(f"\n{found}")
    solved = {(p.label, e.solver, e.form) for p in found.problems for e in p.entries if e.outcome == "solved"}
    assert not recorded - solved
