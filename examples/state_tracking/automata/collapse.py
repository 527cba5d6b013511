"""The run that collapses: parity at a constant rate, solved and then lost; and the same run under a guard."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

from deqlm.models import LMOptions, Mamba2Options
from deqlm.training import Curriculum, Stage, free, warm_up
from examples.loop import Guard, LoopOptions
from examples.loop.guard import Fall
from examples.loop.results import read_json, write_json
from examples.state_tracking.automata.experiment import run
from examples.state_tracking.automata.recipe import AutomatonRecipe
from examples.state_tracking.jobs import run_jobs

__all__ = ["LABELS", "collapsing", "compare", "describe"]

LENGTHS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 20, 28, 40)
WIDE = 92
"""Columns that a page shows without scrolling."""
INDENT: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": "  "}
LABELS = ("constant rate", "constant rate, guarded")


def collapsing(*, guard: Guard | None = None, steps: int = 400, seed: int = 1) -> AutomatonRecipe:
    """Return the training whose learning curve collapses: the rate stays, and nothing ends it when it has learnt.

    Args:
        guard: of the loop.
        steps: of the optimizer.
        seed: of weights and batches.
    """
    model = LMOptions(
        vocab_size=2,
        d_model=32,
        n_layer=1,
        mixer=Mamba2Options(d_state=16, headdim=32),
        weight_norm=False,
        labels="aligned",
    )
    loop = LoopOptions(
        steps=steps,
        curriculum=Curriculum(tuple(map(_stage, LENGTHS))),
        lr=3e-3,
        warm_up=20,
        decay="constant",
        seed=seed,
        log_every=10,
        guard=guard,
    )
    label = LABELS[guard is not None]
    return AutomatonRecipe(label=label, task="parity", model=model, loop=loop, mixed=0.0)


def _stage(length: int) -> Stage:
    phase = warm_up(iterations=length, damping=1.0) if length <= 10 else free(max_iter=48, phantom=6, damping=1.0)
    until = None if length == LENGTHS[-1] else 0.9
    return Stage(length=length, rows=2048 // length, until=until, phase=phase)


def compare(out: Path, *, steps: int = 400, workers: int = 2, progress: bool | None = None) -> dict[str, Any]:
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
        lines += [fill(Fall(**fall).line(), WIDE, **INDENT) for fall in result["training"]["falls"]]
    return "\n".join(lines)
