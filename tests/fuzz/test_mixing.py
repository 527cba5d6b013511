"""Random maps that mix rows, strongly or more weakly than a probe sees: CONVERGED is true of all that is returned."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm_solvers import SOLVERS, Broyden, Solver, Stop

BLOCK = 40
KINDS = ("mean", "before", "behind", "largest", "last", "sum")


@dataclass
class Mixing:
    """Contractions, each row of which adds ``weight`` times something of the others."""

    kind: str
    weight: float
    bent: bool

    def __call__(self, z: Tensor, gain: Tensor, b: Tensor) -> Tensor:
        return gain * (torch.cos(z) if self.bent else z) + b + self.weight * self.of_others(z)

    def of_others(self, z: Tensor) -> Tensor:
        if self.kind == "before":
            return torch.cat((0 * z[:1], z[:-1]))
        if self.kind == "behind":
            return torch.roll(z, -1, 0)
        taken = {"mean": lambda: z.mean(0), "largest": lambda: z.amax(0), "last": lambda: z[-1]}
        return z.cumsum(0) if self.kind == "sum" else taken[self.kind]()


def solver_of(r: random.Random) -> Solver:
    name = r.choice(["fixed_point", "anderson", "broyden", "armijo", "newton_krylov", "fallback"])
    made = Broyden(line_search="armijo") if name == "armijo" else SOLVERS.make(name)
    return made.replace(impl=r.choice(["torch", "cpp"])) if hasattr(made, "impl") else made


def stop_of(r: random.Random, solver: Solver, dtype: torch.dtype) -> Stop:
    rtol = {torch.float64: [1e-3, 1e-6, 1e-10], torch.float32: [1e-2, 1e-4, 1e-6], torch.bfloat16: [0.03]}[dtype]
    compact: Any = r.choice([True, True, False] + ["at_once"] * (not solver.steps_evaluate))
    test_every: Any = r.choice([1, 1, 3, "auto"])
    every = r.choice([1, 3, 7]) if compact != "at_once" and test_every != "auto" else 1
    return Stop(
        max_iter=r.choice([5, 20, 60, 300]),
        rtol=r.choice(rtol),
        atol=r.choice([0.0, 0.0, 1e-6]),
        compact=compact,
        test_every=test_every,
        check_every=every,
        patience=r.choice([None, None, 2, 10]),
    )


@pytest.mark.parametrize(
    "start", [pytest.param(s, marks=[] if s < BLOCK else pytest.mark.slow) for s in range(0, 25 * BLOCK, BLOCK)]
)
def test_no_false_word_where_rows_mix(start: int):
    for seed in range(start, start + BLOCK):
        r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        dtype = r.choice([torch.float64, torch.float32, torch.float32, torch.bfloat16])
        rows, unknowns = r.choice([2, 3, 5, 9, 17, 33]), r.choice([1, 4, 16, 64, 300])
        f = Mixing(r.choice(KINDS), 10 ** r.uniform(-14, -1), r.random() < 0.3)
        solver = solver_of(r)
        stop = stop_of(r, solver, dtype)
        gain = (0.999 * torch.rand(rows, 1, generator=generator) ** r.choice([1, 4, 0.2])).to(dtype)
        sizes = torch.tensor([10 ** r.uniform(-3, 6) for _ in range(rows)], dtype=torch.float64)[:, None]
        b = (sizes * torch.randn(rows, unknowns, generator=generator, dtype=torch.float64)).to(dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="rtol=")
            sol = deqlm.solve(f, 0 * b, args=(gain, b), solver=solver, stop=stop, on_failure="ignore")
        fz = f(sol.z, gain, b).double()
        residual, norm = (fz - sol.z.double()).norm(dim=1), fz.norm(dim=1)
        # a product of a matrix, and here a mean, rounds by the shape of the batch
        allowed = 1.051 * (stop.atol + stop.rtol * norm) + 3 * torch.finfo(dtype).eps * norm
        assert (residual <= allowed)[sol.converged].all(), f"seed {seed}: {f}, {solver}, {stop}"
        if solver.name != "fallback":
            assert (sol.steps <= stop.max_iter).all(), f"seed {seed}: {f}, {solver}, {stop}"
