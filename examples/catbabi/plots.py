"""Pictures of stored results; each is drawn from JSON data and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.catbabi.report import title
from examples.state_tracking.plots import PALETTE, drawing

__all__ = ["accuracy_by_task", "budgets"]

Data = dict[str, Any]


def accuracy_by_task(results: Sequence[Data], path: Path) -> list[Path]:
    """Draw a group of bars per task, one bar per result, and what one fixed answer would score as a black line.

    Args:
        results: of `examples.catbabi.experiment.run` on the same stories.
        path: of the picture, without its ending.
    """
    tasks = list(results[0]["test"]["tasks"])
    names = [*(title(task).replace(" ", "\n", 1) for task in tasks), "all"]
    width = 0.8 / len(results)
    with drawing(path, max(5.4, 1.6 + 0.75 * len(names)), 3.2 + 0.18 * len(results)) as (axis, written):
        for index, (color, result) in enumerate(zip(PALETTE, results, strict=False)):
            tested = result["test"]
            heights = [*(tested["tasks"][task]["accuracy"] for task in tasks), tested["accuracy"]]
            places = [place + width * (index - (len(results) - 1) / 2) for place in range(len(names))]
            bars = axis.bar(places, heights, 0.94 * width, color=color, label=result["label"])
            axis.bar_label(bars, [f"{100 * height:.0f}" for height in heights], fontsize=7)
        guess = results[0]["guess"]
        lines = [*(guess["tasks"][task] for task in tasks), guess["accuracy"]]
        places = list(range(len(names)))
        axis.hlines(lines, [p - 0.42 for p in places], [p + 0.42 for p in places], color="black", linewidth=1.1)
        axis.set_xticks(places, names, fontsize=7)
        axis.set(ylim=(0, 1.08), ylabel="fraction of answers that are right")
        axis.set_title("Accuracy per task on test stories (numbers: per cent; black: one fixed answer)")
        axis.grid(axis="x", visible=False)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return written


def budgets(rows: Sequence[Data], path: Path) -> list[Path]:
    """Draw accuracy against the most evaluations that a solve may take.

    Args:
        rows: scores with their ``max_iter``, as the command ``evaluate`` stores them.
        path: of the picture, without its ending.
    """
    with drawing(path, 5.2, 3.0) as (axis, written):
        x = [row["max_iter"] for row in rows]
        for color, task in zip(PALETTE[1:] * 4, rows[0]["tasks"], strict=False):
            y = [row["tasks"][task]["accuracy"] for row in rows]
            axis.plot(x, y, color=color, linewidth=0.9, label=title(task))
        axis.plot(x, [row["accuracy"] for row in rows], "o-", color=PALETTE[0], markersize=3.5, label="all")
        axis.set(xscale="log", ylim=(-0.02, 1.04), xlabel="most evaluations of a solve", ylabel="accuracy")
        axis.set_xticks(x, x)
        axis.minorticks_off()
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return written
