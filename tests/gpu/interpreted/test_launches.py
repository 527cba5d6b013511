"""How many launches an evaluation takes, and how many times it moves the state; see docs/guides/gpu_kernels.md."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from deqlm.testing.solvers.problems import normal
from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solve, Solver, Stop
from gpu.interpreter import Launch, checked

RECORD = json.loads((Path(__file__).resolve().parents[3] / "docs/records/gpu_launches.json").read_text())
CASES: dict[str, tuple[Solver, int, Stop]] = {
    "FixedPoint()": (FixedPoint(), 4096, Stop(max_iter=12, rtol=1e-7)),
    "FixedPoint(damping=0.8)": (FixedPoint(damping=0.8), 4096, Stop(max_iter=12, rtol=1e-7)),
    "FixedPoint(), long rows": (FixedPoint(), 16384, Stop(max_iter=6, rtol=1e-7)),
    "FixedPoint(), tokens": (FixedPoint(), 4096, Stop(max_iter=6, rtol=1e-7, per="token")),
    "Anderson()": (Anderson(plain_rate=0.0), 4096, Stop(max_iter=18, rtol=1e-13)),
    "Anderson(memory=6)": (Anderson(memory=6, plain_rate=0.0), 4096, Stop(max_iter=12, rtol=1e-13)),
    "Broyden()": (Broyden(), 4096, Stop(max_iter=26, rtol=1e-13)),
    'Broyden(update="bad")': (Broyden(update="bad"), 4096, Stop(max_iter=26, rtol=1e-13)),
}


def last_evaluation(solver: Solver, unknowns: int, stop: Stop) -> list[Launch]:
    """Return the launches of the last evaluation that makes a step, when the history is full."""
    b, turn = normal(1, 1, unknowns).float(), torch.linspace(0.2, 0.97, unknowns)
    seen: list[int] = []
    layout = Layout(leaves=((64, unknowns // 64),))
    with checked(hazards=False) as launches:

        def f(z: torch.Tensor) -> torch.Tensor:
            seen.append(len(launches))
            return torch.tanh(turn * z.roll(1, 1) + b)

        Solve(solver.replace(impl="triton"), stop)(f, torch.zeros(1, unknowns), layout)
    return launches[seen[-2] : seen[-1]]


def counted(name: str) -> dict[str, float]:
    solver, unknowns, stop = CASES[name]
    launches = last_evaluation(solver, unknowns, stop)
    state = 4 * unknowns
    moved = Counter[str]()
    for launch in launches:
        for book in (launch.loaded, launch.stored):
            for argument, size in book.items():
                if argument in ("z", "fz", "z_next", "best_z", "ring", "restart"):
                    moved[argument] += size
    return {"launches": len(launches), "passes": round(sum(moved.values()) / state, 1)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:rtol=")
@pytest.mark.parametrize("name", CASES)
def test_launches_and_passes_are_those_of_the_record(name: str):
    assert counted(name) == RECORD["cases"][name]
