"""Three hours at most: a rate search for every model, then equal steps and equal time, five seeds each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deqlm.models import LMOptions
from examples.loop.results import write_json
from examples.loop.train import TrainingError
from examples.state_tracking.experiment import run
from examples.state_tracking.jobs import run_jobs
from examples.state_tracking.recipe import Recipe
from examples.state_tracking.recipes import LENGTHS, explicit, general, implicit, tests

__all__ = ["GROUPS", "RATES", "SEEDS", "attempt", "best_run", "compare"]

GROUPS = {"S3": 1000, "Z2": 600, "Z3": 600, "A4": 2000}
"""Groups, and the steps of every model at equal steps."""

WIDTHS = {"S3": 32, "Z2": 32}
WIDER = 64
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SEEDS = (0, 1, 2, 3, 4)
SEARCH_SEED = 1000
"""Not one of those that are shown."""

TRIED, SHOWN = 0, 1
"""Seeds of the tested sequences: of the search, and of the tables."""

LAYERS = (1, 2, 4)
TRAINED = 16
"""The longest length of the trainings."""


def compare(
    group: str, out: Path, *, workers: int = 2, quick: bool = False, progress: bool | None = None
) -> dict[str, Any]:
    """Search, train and test for one group; return all of it, stored as ``out``/GROUP.json.

    Of the rates tried with one seed `best_run` tells which is taken, on other sequences than those of the tables. At
    equal time an explicit model takes as many steps as fit into the CPU seconds of the implicit one, by the seconds per
    step of its search.

    Args:
        group: one of `GROUPS`.
        out: folder; what is finished there is not run again.
        workers: processes.
        quick: tiny settings, to see that it runs.
        progress: as for `run_jobs`.
    """
    steps, seeds = (4, SEEDS[:2]) if quick else (GROUPS[group], SEEDS)
    models = _models(group)

    def recipe(label: str, lr: float, seed: int, steps: int, sequences: int = SHOWN) -> Recipe:
        made = general(group, model=models[label], label=label, steps=steps, length=TRAINED, lr=lr, seed=seed)
        few = {"rows": 8, "batch": 8, "max_iter": 8} if quick else {}
        return made.replace(tests=tests(LENGTHS, seed=sequences, **few))

    def runs(recipes: list[Recipe], stage: str, do: Callable[..., dict[str, Any]] = run) -> list[dict[str, Any]]:
        jobs = [(r, out / group / stage / f"{_slug(r.label)}-{r.loop.lr:g}-{r.loop.seed}") for r in recipes]
        return run_jobs(jobs, workers=workers, progress=progress, do=do)

    tried = runs([recipe(label, lr, SEARCH_SEED, steps, TRIED) for label in models for lr in RATES], "search", attempt)
    best = {label: best_run([r for r in tried if r["label"] == label]) for label in models}
    rates = {label: result["recipe"]["loop"]["lr"] for label, result in best.items()}
    equal_steps = runs([recipe(label, rates[label], seed, steps) for label in models for seed in seeds], "equal_steps")

    solved = [r for r in equal_steps if r["label"] == next(iter(models))]
    budget = max(r["training"]["seconds"]["cpu"] for r in solved)
    fitting = {label: max(steps, int(budget / _seconds_per_step(best[label]))) for label in list(models)[1:]}
    longer = runs(
        [recipe(label, rates[label], seed, count) for label, count in fitting.items() for seed in seeds], "equal_time"
    )
    data = {
        "group": group,
        "rates": rates,
        "search": tried,
        "equal_steps": equal_steps,
        "equal_time": [*solved, *longer],
    }
    write_json(out / f"{group}.json", data)
    return data


def attempt(recipe: Recipe, folder: Path, **how: Any) -> dict[str, Any]:
    """Run a recipe as `run` does; a training that breaks down is a result without tests, which says why."""
    try:
        return run(recipe, folder, **how)
    except TrainingError as error:
        return {"label": recipe.label, "recipe": recipe.to_dict(), "tests": [], "failed": str(error)}


def best_run(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run with the highest accuracy over all tokens at the trained length, the middle one of equal runs.

    Args:
        tried: one model's results, in the order of their rates.
    """
    reached = [_trained_accuracy(result) for result in tried]
    equal = [result for result, accuracy in zip(tried, reached, strict=True) if accuracy == max(reached)]
    return equal[(len(equal) - 1) // 2]


def _models(group: str) -> dict[str, LMOptions]:
    width = WIDTHS.get(group, WIDER)
    made = {"implicit, 1 layer": implicit(group, width=width)}
    return made | {f"explicit, {n} layer{'s' * (n > 1)}": explicit(group, n, width=width) for n in LAYERS}


def _trained_accuracy(result: dict[str, Any]) -> float:
    return next((test["mean"] for test in result["tests"] if test["length"] == TRAINED), -1.0)


def _seconds_per_step(result: dict[str, Any]) -> float:
    return result["training"]["seconds"]["cpu"] / result["training"]["steps"]


def _slug(label: str) -> str:
    return label.replace(", ", "-").replace(" ", "")
