"""The table: the implicit layer on every task and seed, then the others in the time that it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from deqlm_solvers.core.checks import require, suggest, whole
from examples.loop.command import distinct
from examples.loop.results import read_json, write_json
from examples.state_tracking.automata.experiment import run
from examples.state_tracking.automata.recipe import MODELS, AutomatonRecipe, baseline, implicit
from examples.state_tracking.automata.tasks import TABLE, contract
from examples.state_tracking.jobs import run_jobs
from examples.state_tracking.report import table

__all__ = ["PUBLISHED", "RATES", "describe", "found", "run_all", "search", "seconds_of", "tabulate"]

RATES = Path(__file__).with_name("rates.json")
"""What the search of the other models' rates tried and found; ``automata --search`` writes it."""

TRIED = (1e-3, 3e-3, 1e-2)
SEARCHED = "cycle_navigation"
SEARCH_SEED = 1000
"""A seed that no table shows."""

PUBLISHED = {
    "LSTM": 100.0,
    "PD-SSM": 98.8,
    "SLiCE": 85.1,
    "Gated DeltaProduct": 80.7,
    "xLSTM": 70.5,
    "Gated DeltaNet": 63.3,
    "Mamba": 58.9,
    "RWKV-7": 54.1,
    "transformer": 47.7,
}
"""Means over the four tasks, per cent, as PD-SSM (arXiv 2509.22284) and SLiCE (arXiv 2505.17761) print them: 100,000
steps of 256 sequences, the checkpoint with the best accuracy on the tested lengths, five seeds."""

Data = dict[str, Any]


def tabulate(
    tasks: Sequence[str],
    models: Sequence[str],
    out: Path,
    *,
    seeds: int = 5,
    workers: int = 2,
    progress: bool | None = None,
    quick: bool = False,
) -> Data:
    """Train what is missing, and store all of it as ``out``/automata.json.

    Args:
        tasks: names of contracts.
        models: labels of what stands beside the implicit layer.
        out: folder.
        seeds: 0 to ``seeds`` - 1.
        workers: processes.
        progress: as for `run_jobs`.
        quick: three steps of each, to see that it runs.

    Raises:
        KeyError: an unknown task or model.
        ValueError: seeds below 1, or a model whose rate was never searched for.
    """
    whole("seeds", seeds, 1)
    for name, given in (("tasks", tasks), ("models", models)):
        distinct(name, given)
    for task in tasks:
        contract(task)
    rates = {label: _rate(label) for label in models}
    ours = [implicit(task, seed) for task in tasks for seed in range(seeds)]
    results = run_all(ours, out, quick=quick, workers=workers, progress=progress)
    seconds = {task: seconds_of([r for r in results if r["contract"]["name"] == task]) for task in tasks}
    others = [
        baseline(label, task, **rates[label], seconds=seconds[task], seed=seed)
        for label in models
        for task in tasks
        for seed in range(seeds)
    ]
    results += run_all(others, out, quick=quick, workers=workers, progress=progress)
    data = {
        "contracts": [contract(task).to_dict() for task in tasks],
        "published": PUBLISHED,
        "seconds": seconds,
        "results": results,
    }
    write_json(out / "automata.json", data)
    return data


def run_all(recipes: Sequence[AutomatonRecipe], out: Path, *, quick: bool, **how: Any) -> list[Data]:
    """Return the results of recipes in folders of their own below ``out``.

    Args:
        recipes: of one label and seed a task at most.
        out: folder.
        quick: three steps of each.
        how: workers and progress, as for `run_jobs`.
    """
    jobs = [(_shortened(r) if quick else r, out / _folder(r)) for r in recipes]
    return run_jobs(jobs, do=run, **how) if jobs else []


def _folder(recipe: AutomatonRecipe) -> Path:
    return Path(recipe.task, f"{recipe.label.replace(', ', '-').replace(' ', '')}-{recipe.loop.seed}")


def _shortened(recipe: AutomatonRecipe) -> AutomatonRecipe:
    loop = recipe.loop.replace(steps=3, warm_up=1, log_every=1, time_limit=None)
    return recipe.replace(loop=loop, lengths=(40,), rows=4)


def seconds_of(results: Sequence[Data]) -> int:
    """Return the most CPU seconds that a training of these results took, rounded up: what the others get."""
    return math.ceil(max(r["training"]["seconds"]["cpu"] for r in results if "training" in r))


def _rate(label: str) -> dict[str, Any]:
    if label not in MODELS:
        raise KeyError(f"unknown model {label!r}: {suggest(label, MODELS)}")
    best = _stored()["best"] if RATES.exists() else {}
    if label not in best:
        raise ValueError(f"{label!r} has no rate in {RATES.name}: run automata --search --models {label!r} first")
    return {"lr": best[label]["lr"], "curriculum": best[label]["curriculum"]}


@cache
def _stored() -> Data:
    return read_json(RATES)


def search(
    models: Sequence[str], out: Path, *, seconds: float = 40, workers: int = 2, progress: bool | None = None
) -> Data:
    """Train every model with every rate, on growing lengths and on all of them at once; return what was best.

    One task stands for all of them: cycle navigation. The accuracy is that of validation sequences of the tested
    lengths; of equal ones the first is taken.

    Args:
        models: labels.
        out: folder of the runs.
        seconds: CPU time of each.
        workers: processes.
        progress: as for `run_jobs`.

    Raises:
        ValueError: no model.
        KeyError: an unknown one.
    """
    distinct("models", models)
    require(len(models) > 0, "models", tuple(models), f"some of {', '.join(MODELS)}")
    cases = [(label, lr, start) for label in models for lr in TRIED for start in (True, False)]
    jobs = [
        (
            baseline(label, SEARCHED, lr=lr, seconds=seconds, curriculum=start, seed=SEARCH_SEED, split="valid"),
            out / f"{label.replace(', ', '-').replace(' ', '')}-{lr:g}-{'curriculum' if start else 'direct'}",
        )
        for label, lr, start in cases
    ]
    results = run_jobs(jobs, workers=workers, progress=progress, do=run)
    tried, best = [], {}
    for (label, lr, start), result in zip(cases, results, strict=True):
        row = {"label": label, "task": SEARCHED, "lr": lr, "curriculum": start, "seed": SEARCH_SEED, "seconds": seconds}
        row |= {"trained": result.get("valid", 0.0), "mean": result["mean"] or 0.0}
        tried.append(row)
        leader = best.setdefault(label, row)
        if (row["mean"], row["trained"]) > (leader["mean"], leader["trained"]):
            best[label] = row
    before = _stored() if RATES.exists() else {"best": {}, "tried": []}
    tried = [row for row in before["tried"] if row["label"] not in best] + tried
    return {"best": before["best"] | best, "tried": tried, "environment": results[0]["environment"]}


def found(results: Sequence[Data], label: str, task: str) -> list[Data]:
    """Return the results of one model on one task, by seed."""
    chosen = [r for r in results if r["label"] == label and r["contract"]["name"] == task]
    return sorted(chosen, key=lambda r: r["seed"])


def describe(data: Data, *, markdown: bool = False) -> str:
    """Return the table as text: accuracy of the last token in per cent, mean over seeds and, in brackets, each seed.

    Args:
        data: of `tabulate`.
        markdown: in place of plain text.
    """
    results, tasks = data["results"], [c["name"] for c in data["contracts"]]
    shown = [task for task in tasks if task in TABLE]
    rows = []
    for label in dict.fromkeys(r["label"] for r in results):
        groups = {task: found(results, label, task) for task in tasks}
        cells = [_cell(groups[task]) for task in tasks]
        four = [_mean(groups[task]) for task in shown if groups[task]]
        whole_table = len(four) == len(TABLE)
        seconds = sum(r["training"]["seconds"]["cpu"] for g in groups.values() for r in g if "training" in r)
        runs = sum(map(len, groups.values()))
        average = f"{mean(four):.1f}" if whole_table else ""
        rows.append([label, *cells, average, str(runs), f"{seconds:.0f}"])
    head = ["model", *(task.replace("_", " ") for task in tasks), "mean of the four", "trainings", "CPU s"]
    empty = [""] * len(tasks)
    rows += [[f"*{label}, published*", *empty, f"*{value:g}*", "", ""] for label, value in data["published"].items()]
    return table(head, rows, markdown=markdown)


def _mean(group: Sequence[Data]) -> float:
    return 100 * mean(r["mean"] or 0.0 for r in group)


def _cell(group: Sequence[Data]) -> str:
    if not group:
        return ""
    seeds = ", ".join("broke" if r["mean"] is None else f"{100 * r['mean']:.1f}" for r in group)
    return f"{_mean(group):.1f} ({seeds})" if len(group) > 1 else seeds
