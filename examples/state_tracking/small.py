"""Half an hour on two cores: which groups one implicit layer learns, and what the modes cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqlm.models import ImplicitLM
from deqlm.sequence.modes import Chunked, Frontier, Sequential, Simultaneous
from deqlm_solvers.core.checks import suggest
from examples.loop.results import read_json, write_json
from examples.state_tracking.data import word_problem
from examples.state_tracking.evaluate import agreement, by_budget, frontier, predict, summary
from examples.state_tracking.experiment import load
from examples.state_tracking.jobs import Job, run_jobs
from examples.state_tracking.recipe import Recipe, Test
from examples.state_tracking.recipes import demo_recipes, general, implicit, transformer

__all__ = ["PARTS", "jobs_of", "part_recipes", "prepare", "run_part"]

PARTS = ("Z2", "Z3", "S3", "A5", "S5", "transformer-Z2", "transformer-S3", "modes")
"""What the size consists of, each runnable on its own; "modes" looks at the first model of "Z2"."""

MODES = (Sequential(), Chunked(8), Chunked(16), Chunked(32), Chunked(64), Frontier(8), Simultaneous())
MODE_LENGTHS = (256, 1024, 4096)
UNSEEN = ("A5", "S5", "transformer-Z2", "transformer-S3")
"""Parts whose settings were chosen by looking at tests: they are tested on other sequences."""

BUDGETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


def part_recipes(part: str, *, quick: bool = False) -> list[Recipe]:
    """Return the recipes of a part; none of "modes", which trains nothing.

    Args:
        part: one of `PARTS`.
        quick: a few steps of each, to see that it runs.

    Raises:
        KeyError: an unknown part.
    """
    if part == "Z2":
        recipes = [recipe for seed in range(3) for recipe in demo_recipes("Z2", seed)]
    elif part == "S3":
        recipes = [recipe for seed in range(5) for recipe in demo_recipes("S3", seed)]
    elif part == "Z3":
        recipes = [
            general("Z3", model=implicit("Z3", width=64), label="implicit, 1 layer", steps=300, seed=seed)
            for seed in range(3)
        ]
    elif part == "A5":
        settings: dict[str, Any] = {
            "steps": 4000,
            "length": 32,
            "tokens": 1024,
            "max_iter": 32,
            "until": (0.9, 0.9, 0.9, 0.99),
            "checkpoint_every": 100,
        }
        recipes = [
            general("A5", model=implicit("A5", width=64), label="implicit, 1 layer, width 64", seed=seed, **settings)
            for seed in range(2)
        ]
    elif part == "S5":
        settings = {"steps": 6500, "length": 32, "tokens": 1024, "max_iter": 64, "until": (0.9, 0.9, 0.9, 0.97)}
        recipes = [
            general(
                "S5",
                model=implicit("S5", width=64),
                label="implicit, 1 layer, width 64",
                checkpoint_every=100,
                **settings,
            )
        ]
    elif part in ("transformer-Z2", "transformer-S3"):
        recipes = _transformers(part.partition("-")[2])
    elif part == "modes":
        recipes = []
    else:
        raise KeyError(f"unknown part {part!r}: {suggest(part, PARTS)}")
    if part in UNSEEN:
        recipes = [r.replace(tests=tuple(test.replace(seed=1) for test in r.tests)) for r in recipes]
    return [_shortened(recipe) for recipe in recipes] if quick else recipes


def _transformers(group: str) -> list[Recipe]:
    """Return a layer that sees itself and the token before, for three seeds, and one that sees all tokens."""
    near = {"steps": 500, "lr": 1e-3} if group == "Z2" else {"steps": 1500, "lr": 2e-3, "max_iter": 40}
    wide = {"steps": 900, "lr": 1e-3} if group == "Z2" else {"steps": 2000, "lr": 3e-3}

    def one(label: str, window: int | None, **settings: Any) -> Recipe:
        model = transformer(group, window=window)
        label = f"implicit transformer, {label}"
        return general(group, model=model, label=label, start=True, checkpoint_every=100, **settings)

    return [*(one("window of 2", 2, seed=seed, **near) for seed in range(3)), one("all tokens", None, **wide)]


def _shortened(recipe: Recipe) -> Recipe:
    changes = {"warm_up": 1, "log_every": 1, "checkpoint_every": None}
    tests = tuple(test.replace(rows=4, batch=4, max_iter=4) for test in recipe.tests)
    return recipe.with_loop(steps=3, **changes).replace(tests=tests)


def jobs_of(part: str, out: Path, *, quick: bool = False) -> list[Job]:
    """Return the recipes of a part with their folders."""
    return [
        (recipe, out / part / f"{recipe.label.replace(', ', '-').replace(' ', '')}-{recipe.loop.seed}")
        for recipe in part_recipes(part, quick=quick)
    ]


def prepare(
    parts: Sequence[str], out: Path, *, workers: int = 2, quick: bool = False, progress: bool | None = None
) -> None:
    """Train all models of the parts in one go, those that take longest first, so that no process waits.

    Args:
        parts: of `PARTS`.
        out: folder.
        workers: processes.
        quick: a few steps of each, to see that it runs.
        progress: as for `run_jobs`.
    """
    jobs = [job for part in parts for job in jobs_of(part, out, quick=quick)]
    jobs.sort(key=lambda job: job[0].loop.steps if job[0].model.implicit else 0, reverse=True)
    if jobs:
        run_jobs(jobs, workers=workers, progress=progress)


def run_part(
    part: str, out: Path, *, workers: int = 2, quick: bool = False, progress: bool | None = None
) -> dict[str, Any]:
    """Run what is missing of a part, and return all of it; it is stored as ``out``/PART.json.

    Args:
        part: one of `PARTS`.
        out: folder.
        workers: processes.
        quick: a few steps of each, to see that it runs.
        progress: as for `run_jobs`.
    """
    path = out / f"{part}.json"
    if part == "modes":
        data = _modes(out, quick=quick, progress=progress)
    else:
        data = {"results": run_jobs(jobs_of(part, out, quick=quick), workers=workers, progress=progress)}
    write_json(path, {"part": part, **data})
    return read_json(path)


def _modes(out: Path, *, quick: bool, progress: bool | None) -> dict[str, Any]:
    first = jobs_of("Z2", out, quick=quick)[:1]
    run_jobs(first, workers=1, progress=progress)
    recipe, model = load(first[0][1])
    lengths = (16, 32) if quick else MODE_LENGTHS
    table = [line for length in lengths for line in _compared(model, recipe, length, out / "modes")]
    problem = word_problem(recipe.problem)
    budgets = {
        str(length): by_budget(model, problem, length=length, budgets=BUDGETS, rows=4 if quick else 128)
        for length in (16, 32, 64)
    }
    shares = [Test(length=lengths[0], p=p, rows=64, batch=64, mode=Sequential(), max_iter=100) for p in (0.0, 0.5, 0.9)]
    return {
        "table": table,
        "frontier": frontier(model, problem, length=64, iterations=4 if quick else 128),
        "budgets": budgets,
        "shares": [summary(predict(model, problem, test), test) for test in shares],
    }


def _compared(model: ImplicitLM, recipe: Recipe, length: int, folder: Path) -> list[dict[str, Any]]:
    """Return every mode at one length, one sequence at a time, compared with the first mode; stored when done."""
    path = folder / f"{length}.json"
    if path.exists():
        return read_json(path)
    problem, found, reference = word_problem(recipe.problem), [], None
    for mode in MODES:
        most = 2 * length + 100 if isinstance(mode, Simultaneous) else 200
        test = Test(length=length, rows=1, batch=1, mode=mode, max_iter=most)
        outcome = predict(model, problem, test)
        reference = outcome if reference is None else reference
        found.append({**summary(outcome, test), "agreement": agreement(outcome, reference)})
    write_json(path, found)
    return found
