"""What the reader sees: the table, the record, the picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqlm.reporting import page
from deqlm.reporting.style import PALETTE, can_draw, figure, steady, write
from deqlm.reporting.table import aligned

Data = dict[str, Any]


def table(runs: Sequence[Data]) -> str:
    """Return a line per model: accuracy, what the solver did, what it took."""
    rows = [["model", "parameters", "CPU s", "accuracy", "evaluations", "not converged", "spectral radius"]]
    for run in runs:
        found = run["test"]
        solved = [f"{found['failed']}", f"{found['radius']:.2f}"] if "radius" in found else ["-", "-"]
        shares = [f"{found['accuracy']:.3f}", f"{found['evaluations']:.1f}"]
        rows.append([run["model"], f"{run['parameters']:,}", f"{run['cpu_seconds']:.1f}", *shares, *solved])
    return "\n".join(aligned(rows))


def block(record: Data) -> str:
    """Return the table of a page as markdown: every model of every seed.

    Args:
        record: of docs/records, with a run per seed.
    """
    head = ["model", "seed", "parameters", "CPU s", "accuracy", "evaluations", "not converged, of 256"]
    rows = []
    for seed, run in ((one["settings"]["seed"], run) for one in record["runs"] for run in one["runs"]):
        found = run["test"]
        solved = [f"{found['failed']}", f"{found['radius']:.2f}"] if "radius" in found else ["-", "-"]
        shares = [f"{found['accuracy']:.3f}", f"{found['evaluations']:.1f}"]
        cells = [run["model"], f"{seed}", f"{run['parameters']:,}", f"{run['cpu_seconds']:.1f}"]
        rows.append([*cells, *shares, *solved])
    return page.table([*head, "spectral radius"], rows)


def save(folder: Path, record: Data) -> list[str]:
    """Write result.json and, where matplotlib is installed, the picture; return the names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    pictures = draw(record["runs"], folder) if can_draw() else []
    return ["result.json", *(path.name for path in pictures)]


def draw(runs: Sequence[Data], folder: Path) -> list[Path]:
    """Draw the evaluations of every training step, one line per model that is solved."""
    with steady():
        made = figure(5.2, 3.0)
        axis = made.subplots()
        for color, run in zip(PALETTE, (run for run in runs if "radius" in run["test"]), strict=False):
            label = f"{run['model']}: accuracy {run['test']['accuracy']:.2f}"
            axis.plot(range(1, len(run["curve"]) + 1), run["curve"], color=color, linewidth=1, label=label)
        axis.set(ylim=(0, None), xlabel="training step", ylabel="evaluations, mean of a batch")
        axis.legend()
        made.tight_layout()
        return write(made, folder, "evaluations")
