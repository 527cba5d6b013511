"""The run that collapses: parity at a constant rate, solved and then lost; and the same run under a guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deqlm.training import Curriculum
from examples.loop import Guard
from examples.loop.guard import Fall
from examples.state_tracking.automata.experiment import run
from examples.state_tracking.automata.recipe import TOKENS, AutomatonRecipe, implicit
from examples.state_tracking.experiment import read_json, write_json
from examples.state_tracking.jobs import run_jobs

__all__ = ["LABELS", "collapsing", "compare", "describe"]

LABELS = ("constant rate", "constant rate, guarded")


def collapsing(*, guard: Guard | None = None, steps: int = 700, seed: int = 0) -> AutomatonRecipe:
    """Return the training whose learning curve collapses: that of the table, but the rate stays and nothing ends it.

    It takes half as many tokens per step, so that it goes faster.

    Args:
        guard: of the loop.
        steps: of the optimizer.
        seed: of weights and batches.
    """
    recipe = implicit("parity", seed, tokens=TOKENS // 2, decay="constant", steps=steps, log_every=10, guard=guard)
    *stages, last = recipe.loop.curriculum.stages
    endless = recipe.loop.replace(curriculum=Curriculum((*stages, last.replace(until=None))))
    return recipe.replace(label=LABELS[guard is not None], loop=endless)


def compare(out: Path, *, steps: int = 700, workers: int = 2, progress: bool | None = None) -> dict[str, Any]:
    """Train with and without a guard, and store both with their curves as ``out``/collapse.json."""
    recipes = [collapsing(guard=guard, steps=steps) for guard in (None, Guard())]
    folders = [out / recipe.label.replace(", ", "-").replace(" ", "_") for recipe in recipes]
    results = run_jobs(list(zip(recipes, folders, strict=True)), workers=workers, progress=progress, do=run)
    data = {"results": [{**r, "curve": curve(folder)} for r, folder in zip(results, folders, strict=True)]}
    write_json(out / "collapse.json", data)
    return data


def curve(folder: Path) -> dict[str, list[float | None]]:
    """Return the learning curve of a run as columns, one entry per record of its log."""
    records = read_json(folder / "log.json")["records"]
    columns = ("step", "length", "lr", "loss", "accuracy", "grad_norm", "converged")
    found = {name: [_short(record.get(name)) for record in records] for name in columns}
    return {**found, "evaluations": [_short(r["evaluations"] / r["steps"]) for r in records]}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def describe(data: dict[str, Any]) -> str:
    """Return what happened as text: the last accuracy of each training, and every fall that the guard answered."""
    lines = []
    for result in data["results"]:
        accuracies = result["curve"]["accuracy"]
        best, last = max(a for a in accuracies if a is not None), accuracies[-1]
        found = f"accuracy {best:.3f} at best, {last:.3f} in the end; tests {result['mean']:.3f}"
        lines.append(f"{result['label']}: {found}")
        lines += [f"  {Fall(**fall).line()}" for fall in result["training"]["falls"]]
    return "\n".join(lines)
