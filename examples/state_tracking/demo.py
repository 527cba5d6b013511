"""The minute: one implicit layer against one and two explicit ones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from examples.loop.results import write_json
from examples.state_tracking.jobs import run_jobs
from examples.state_tracking.recipes import demo_recipes
from examples.state_tracking.report import accuracy_table, chance, gap

__all__ = ["demo", "describe", "draw"]


def demo(group: str, out: Path, *, seed: int = 0, workers: int = 3, progress: bool | None = None) -> dict[str, Any]:
    """Train the three models, test them, and store the result in ``out``/result.json.

    Args:
        group: "S3" or "Z2".
        out: folder.
        seed: of weights and batches.
        workers: processes.
        progress: as for `run_jobs`.
    """
    began = time.perf_counter()
    recipes = demo_recipes(group, seed)
    folders = [out / recipe.label.replace(", ", "-").replace(" ", "") for recipe in recipes]
    results = run_jobs(list(zip(recipes, folders, strict=True)), workers=workers, progress=progress)
    data = {"group": group, "seed": seed, "wall_seconds": round(time.perf_counter() - began, 1), "results": results}
    write_json(out / "result.json", data)
    return data


def describe(data: dict[str, Any]) -> str:
    """Return the table of a demo and what it says, as text."""
    group, results = data["group"], data["results"]
    seconds = [result["training"]["seconds"]["cpu"] for result in results]
    lines = [
        f"{group}: accuracy of the last token, trained on up to 16 tokens, seed {data['seed']} "
        f"(guessing: {chance(group):.3f})",
        accuracy_table(results),
        f"At 64 tokens, four times the trained length, the implicit layer is ahead of the best explicit model by "
        f"{gap(results, 64):.2f}.",
    ]
    starved = [r["label"] for r, s in zip(results[1:], seconds[1:], strict=True) if s < seconds[0]]
    if starved:
        lines.append(f"Less time than the implicit layer had: {', '.join(starved)}; raise TWIN_STEPS in recipes.py.")
    return "\n".join([*lines, f"{data['wall_seconds']:.0f} s in all."])


def draw(data: dict[str, Any], out: Path) -> list[Path]:
    """Draw accuracy against length next to the result; return the files, none without matplotlib."""
    try:
        from examples.state_tracking.plots import accuracy_by_length

        return accuracy_by_length(data["results"], out / "accuracy", chance=chance(data["group"]))
    except ImportError:
        return []
