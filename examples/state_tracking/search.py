"""The learning-rate search of the demo's baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.state_tracking.jobs import run_jobs
from examples.state_tracking.recipes import DEMO, TWIN_STEPS, Start, twin

__all__ = ["LEARNING_RATES", "search"]

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STARTS: tuple[Start, ...] = ("curriculum", "direct")
SEED = 1000
"""A seed that no demo shows."""


def search(
    out: Path, *, groups: tuple[str, ...] = tuple(DEMO), workers: int = 2, progress: bool | None = None
) -> dict[str, Any]:
    """Train every baseline with every rate, on growing lengths and on the full one; return what was best.

    The best one has the highest accuracy over all tokens at the trained length, which tells models apart whose last
    token is a guess.

    Args:
        out: folder of the runs; finished ones are not run again.
        groups: of the demo.
        workers: processes.
        progress: as for `run_jobs`.
    """
    cases: list[tuple[str, int, float, Start]] = [
        (group, layers, lr, start)
        for group in groups
        for layers in TWIN_STEPS[group]
        for lr in LEARNING_RATES
        for start in STARTS
    ]
    jobs = [
        (twin(group, layers, lr=lr, start=start, seed=SEED), out / f"{group}-{layers}-{lr:g}-{start}")
        for group, layers, lr, start in cases
    ]
    results = run_jobs(jobs, workers=workers, progress=progress)
    tried, best = [], {}
    for (group, layers, lr, start), result in zip(cases, results, strict=True):
        at = {test["length"]: test for test in result["tests"]}
        row = {"group": group, "layers": layers, "lr": lr, "start": start, "seed": SEED}
        row |= {"mean": round(at[16]["mean"], 4), "last": {length: at[length]["last"] for length in at}}
        row |= {"steps": result["training"]["steps"], "cpu_seconds": round(result["training"]["seconds"]["cpu"], 1)}
        tried.append(row)
        leader = best.setdefault(group, {}).setdefault(str(layers), row)
        if row["mean"] > leader["mean"]:
            best[group][str(layers)] = row
    return {"best": best, "tried": tried, "environment": results[0]["environment"]}
