"""The layer that converges beside models of as many parameters and as much time, each at the rate that suits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.loop.command import distinct
from examples.puzzles.data import Split
from examples.puzzles.experiment import run
from examples.puzzles.model import Shape
from examples.puzzles.recipe import Recipe, folder_of, recipe
from examples.puzzles.recipes import DEMO, IMPLICIT, ONCE
from examples.state_tracking.jobs import run_jobs

__all__ = ["KINDS", "RATES", "SEARCHED", "compare", "twin"]

RATES = (1e-3, 3e-3, 1e-2)
SEARCHED = 1000
"""A seed that no comparison shows; rates are chosen by its puzzles of validation."""
STEPS = 300
KINDS: dict[str, tuple[Shape, int]] = {
    IMPLICIT: (Shape(), STEPS),
    "looped, random number, from zero": (Shape(start="zero"), STEPS),
    "looped, 8 times, from zero": (Shape(least=8, most=8, start="zero"), STEPS),
    "16 layers, a quarter as wide": (
        Shape(width=16, hidden=32, layers=16, least=1, most=1, start="zero"),
        STEPS,
    ),
    ONCE: (Shape(least=1, most=1, start="zero"), 6 * STEPS),
}
"""What is compared, and the steps that take it at least as long as the layer that converges."""


def twin(kind: str, lr: float, seed: int, split: Split) -> Recipe:
    """Return the training of one kind.

    Args:
        kind: of `KINDS`.
        lr: highest learning rate.
        seed: of weights and batches.
        split: that is looked at.
    """
    shape, steps = KINDS[kind]
    return recipe(DEMO, label=kind, steps=steps, shape=shape, lr=lr, seed=seed, split=split)


def compare(out: Path, *, seeds: Sequence[int], workers: int, progress: bool | None = None) -> dict[str, Any]:
    """Search a rate for every kind on validation, and test every kind with its own on every seed.

    Args:
        out: folder of the runs; finished ones are not run again.
        seeds: of the comparison.
        workers: processes.
        progress: as for `run_jobs`.
    """
    distinct("seeds", seeds)
    cases = [(kind, lr) for kind in KINDS for lr in RATES]
    searched = [twin(kind, lr, SEARCHED, "valid") for kind, lr in cases]
    jobs = [(one, out / f"search-{one.loop.lr:g}-{folder_of(one)}") for one in searched]
    tried = run_jobs(jobs, workers=workers, progress=progress, do=run)
    rates = {}
    for kind in KINDS:
        of_kind = [(score(result), -lr) for (name, lr), result in zip(cases, tried, strict=True) if name == kind]
        rates[kind] = -max(of_kind)[1]
    tested = [twin(kind, rates[kind], seed, "test") for kind in KINDS for seed in seeds]
    jobs = [(one, out / folder_of(one)) for one in tested]
    return {"rates": rates, "search": tried, "results": run_jobs(jobs, workers=workers, progress=progress, do=run)}


def score(result: dict[str, Any]) -> tuple[float, float]:
    """Return exact answers and right cells at the number of evaluations that is best for a result."""
    return max((row["exact"], row["cells"]) for row in result["budgets"])
