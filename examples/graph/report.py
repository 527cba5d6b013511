"""What the reader sees: the table, the record, the picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqlm.reporting import page
from deqlm.reporting.style import PALETTE, can_draw, figure, steady, write
from deqlm.reporting.table import aligned
from examples.graph.data import CLASSES

Data = dict[str, Any]


def table(runs: Sequence[Data]) -> str:
    """Return accuracies of the last node, a line per model and a column per length; "evals" is of the longest."""
    lengths = [test["nodes"] for test in runs[0]["tests"]]
    rows = [["model", "parameters", "CPU s", *(f"L={n}" for n in lengths), "evals"]]
    for run in runs:
        shares = [f"{test['accuracy']:.3f}" for test in run["tests"]]
        evaluations = run["tests"][-1].get("evaluations", run["depth"])
        rows.append([run["model"], f"{run['parameters']:,}", f"{run['cpu_seconds']:.1f}", *shares, f"{evaluations}"])
    return "\n".join(aligned(rows))


def block(record: Data) -> str:
    """Return the table of a page as markdown: every model of every seed.

    Args:
        record: of docs/records, with a run per seed.
    """
    lengths = [test["nodes"] for test in record["runs"][0]["runs"][0]["tests"]]
    head = ["model", "seed", "parameters", "CPU s", *(f"L={n}" for n in lengths), f"evaluations, L={lengths[-1]}"]
    rows = []
    for seed, run in ((one["settings"]["seed"], run) for one in record["runs"] for run in one["runs"]):
        shares = [f"{test['accuracy']:.3f}" for test in run["tests"]]
        evaluations = run["tests"][-1].get("evaluations", run["depth"])
        cells = [run["model"], f"{seed}", f"{run['parameters']:,}", f"{run['cpu_seconds']:.1f}"]
        rows.append([*cells, *shares, f"{evaluations}"])
    return page.table(head, rows)


def save(folder: Path, record: Data) -> list[str]:
    """Write result.json and, where matplotlib is installed, the picture; return the names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    pictures = draw(record["runs"], record["settings"]["longest"], folder) if can_draw() else []
    return ["result.json", *(path.name for path in pictures)]


def draw(runs: Sequence[Data], longest: int, folder: Path) -> list[Path]:
    """Draw accuracy against the nodes of a chain, one line per model."""
    with steady():
        made = figure(5.2, 3.2)
        axis = made.subplots()
        for color, run in zip(PALETTE, runs, strict=False):
            x = [test["nodes"] for test in run["tests"]]
            y = [test["accuracy"] for test in run["tests"]]
            axis.plot(x, y, "o-", color=color, markersize=3.5, label=run["model"])
        axis.axvline(longest, color="#888888", linestyle=":", linewidth=1)
        axis.axhline(1 / CLASSES, color="#888888", linestyle="--", linewidth=1)
        axis.set(xscale="log", ylim=(-0.02, 1.04), ylabel="accuracy on the last node")
        axis.set_xticks(x, x)
        axis.minorticks_off()
        axis.set(xlabel="nodes of the chain (dotted: longest trained; dashed: chance)")
        axis.legend()
        made.tight_layout()
        return write(made, folder, "chains")
