"""What the ways along the tokens cost on models that track a state: evaluations, time, error.

    python tests/benchmarks/what_moves.py --record docs/records/what_moves.json [--small]
    python tests/benchmarks/what_moves_page.py docs/records/what_moves.json    # tables and plot of the guide

CPU time, one thread, modes interleaved, median of the repeats. The small run has shorter sequences, one seed and few
batch sizes, and takes minutes; the whole one about an hour.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tracking import attention, parity, track, train_step

from deqlm import Chunked, FixedPoint, Frontier, Phantom, Sequential, Simultaneous, Solve, Stop
from deqlm.models import ImplicitLM
from deqlm.reporting.environment import environment
from deqlm.sequence.modes import Auto, Mode

RTOL = 0.05
MODES: dict[str, Mode] = {
    "simultaneous": Simultaneous(),
    "chunks of 16": Chunked(16),
    "chunks, size measured": Chunked("auto"),
    "window of 8": Frontier(8),
    "auto": Auto(),
    "sequential": Sequential(),
    "sequential, from the token before": Sequential(start="previous"),
    "chunks of 16, from the token before": Chunked(16, start="previous"),
}
DAMPED = FixedPoint(damping=0.8)
TRUNCATED = Solve(FixedPoint(), Stop(max_iter=32, rtol=RTOL, keep="best_f"))
CONVERGED = Solve(DAMPED, Stop(max_iter=400, rtol=RTOL, per="token"))


@torch.no_grad()
def measured(model: ImplicitLM, ids: Tensor, labels: Tensor | None, repeats: int) -> dict[str, Any]:
    """Return per mode what one batch costs, what it gets right, and how far its points are from the fixed point."""
    rows, length = ids.shape
    exact = copy.deepcopy(model).double()
    point = exact(ids, mode=Chunked(16), stop=Stop(max_iter=2000, rtol=1e-11)).solution
    taken: dict[str, list[float]] = {name: [] for name in MODES}
    found: dict[str, Any] = {}
    for _ in range(repeats):
        for name, mode in MODES.items():
            most = 8 * length if name == "simultaneous" else 400
            begun = time.process_time()
            out = model(ids, mode=mode, stop=Stop(max_iter=most, rtol=RTOL, per="token"))
            taken[name].append(time.process_time() - begun)
            sol = out.solution
            error = (sol.z - point.z).norm(dim=2) / point.z.norm(dim=2)
            found[name] = {
                "evaluations": sol.cost.evaluations,
                "row_evaluations": sol.cost.row_evaluations,
                "steps": int(sol.steps.sum()),
                "tokens_per_token": sol.cost.token_evaluations / rows / length,
                "accuracy": None if labels is None else (out.logits.argmax(-1) == labels).double().mean().item(),
                "converged": int(sol.converged.sum()),
                "relative": sol.relative.max().item(),
                "error_max": error.max().item(),
                "error_mean": error.mean().item(),
            }
    for name, seconds in taken.items():
        found[name]["seconds"] = statistics.median(seconds)
    return {"truth": int(point.converged.sum()), "modes": found}


def case(label: str, model: ImplicitLM, p: float, small: bool, *, accurate: bool = True) -> dict[str, Any]:
    """Return one row of tables: a model and a kind of data, at growing lengths, with a batch of 1 and of 8."""
    made: dict[str, Any] = {"label": label, "p": p, "cells": []}
    for length, rows in ((128, 1), (512, 1), (128, 8)) if small else ((256, 1), (1024, 1), (4096, 1), (256, 8)):
        repeats = 1 if small or length > 1024 else 3
        ids, labels = parity(rows, length, p, seed=length + rows)
        cell = measured(model, ids, labels if accurate else None, repeats)
        made["cells"].append({"length": length, "rows": rows, **cell})
        for name, values in cell["modes"].items():
            print(f"{label} L={length} B={rows} {name:36} {values['tokens_per_token']:8.1f} {values['seconds']:.2f} s")
        sys.stdout.flush()
    made["exponents"] = {name: exponent(made["cells"], name) for name in MODES}
    return made


def exponent(cells: list[dict[str, Any]], name: str) -> float | None:
    """Return the slope of log(token evaluations per token) over log(L), batch 1; None for one length."""
    points = [
        (math.log(cell["length"]), math.log(cell["modes"][name]["tokens_per_token"]))
        for cell in cells
        if cell["rows"] == 1
    ]
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def training(model: ImplicitLM, small: bool) -> dict[str, Any]:
    """Return what a training step at L=256 costs, solved to the end in chunks or truncated, and losses of both."""
    ways = {
        "simultaneous, 32 evaluations": (TRUNCATED, Simultaneous()),
        "chunks of 16, converged": (CONVERGED, Chunked(16)),
        "window of 8, converged": (CONVERGED, Frontier(8)),
    }
    steps: list[dict[str, Any]] = []
    for rows in (1, 4) if small else (1, 2, 4, 8, 16, 32):
        taken: dict[str, list[float]] = {name: [] for name in ways}
        cells: dict[str, Any] = {}
        for _ in range(1 if small else 5):
            for name, (how, mode) in ways.items():
                twin = copy.deepcopy(model).train()
                twin.solve, twin.gradient = how, Phantom(4, 0.8)
                optimiser = torch.optim.AdamW(twin.parameters(), lr=1e-4)
                ids, labels = parity(rows, 256, 0.0, seed=rows)
                begun = time.process_time()
                out = train_step(twin, optimiser, ids, labels, mode=mode)
                taken[name].append(time.process_time() - begun)
                per_token = out.solution.cost.token_evaluations / rows / 256
                cells[name] = {"tokens_per_token": per_token, "loss": out.loss.item()}
        for name, seconds in taken.items():
            cells[name]["seconds"] = statistics.median(seconds)
            print(f"training B={rows} {name:30} {cells[name]['tokens_per_token']:6.1f} {cells[name]['seconds']:.2f} s")
        steps.append({"rows": rows, "ways": cells})
    curves = [losses(ways, seed, 5 if small else 60) for seed in range(1 if small else 3)]
    return {"steps": steps, "losses": curves}


def losses(ways: dict[str, Any], seed: int, count: int) -> dict[str, list[float]]:
    """Return the losses of ``count`` steps at L=256 of a model that has learned lengths 2, 4 and 8."""
    curves = {}
    begun = track(seed, lengths=(2, 4, 8))
    for name, (how, mode) in ways.items():
        twin = copy.deepcopy(begun).train()
        twin.solve, twin.gradient = how, Phantom(4, 0.8)
        optimiser = torch.optim.AdamW(twin.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
        curves[name] = []
        for step in range(count):
            ids, labels = parity(4, 256, 0.0, seed=1000 * seed + step)
            curves[name].append(train_step(twin, optimiser, ids, labels, mode=mode).loss.item())
        print(f"losses seed {seed} {name:30} {curves[name][0]:.3f} ... {curves[name][-1]:.3f}", flush=True)
    return curves


@torch.no_grad()
def thinking(model: ImplicitLM, length: int = 192) -> dict[str, Any]:
    """Return how many evaluations each token took, by position, for easy and hard data."""
    made = {}
    for p in (0.0, 0.9):
        ids, _ = parity(1, length, p, seed=7)
        stop = Stop(max_iter=8 * length, rtol=RTOL, per="token")
        whole = model(ids, mode=Simultaneous(), stop=stop).solution.token_steps[0]
        window = model(ids, mode=Frontier(8), stop=stop).solution.token_steps[0]
        made[str(p)] = {"hard": ids[0].tolist(), "simultaneous": whole.tolist(), "window": window.tolist()}
    return made


def main(argv: list[str]) -> int:
    """Train the models, measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="the short run")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = track()
    cases = [
        case("Z2, p=0", model, 0.0, arguments.small),
        case("Z2, p=.9", model, 0.9, arguments.small),
        case("attention, initial weights", attention(), 0.0, arguments.small, accurate=False),
    ]
    record = {
        "record": "what moves",
        "environment": environment(),
        "small": arguments.small,
        "rtol": RTOL,
        "cases": cases,
        "training": training(model, arguments.small),
        "thinking": thinking(model),
    }
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
