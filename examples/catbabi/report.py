"""Tables of stored results, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from examples.state_tracking.report import table

__all__ = ["comparison", "starved", "task_table", "verdict"]

Data = dict[str, Any]

TITLES = {
    1: "one fact",
    2: "two facts",
    3: "three facts",
    4: "two arguments",
    5: "three arguments",
    6: "yes or no",
    7: "counting",
    8: "lists",
    9: "negation",
    10: "indefinite",
    11: "coreference",
    12: "conjunction",
    13: "compound coreference",
    14: "time",
    15: "deduction",
    16: "induction",
    17: "positions",
    18: "size",
    19: "path",
    20: "motivation",
}
"""What bAbI calls its tasks, shortened."""


def title(task: str) -> str:
    """Return number and name of a task."""
    name = TITLES.get(int(task))
    return task if name is None else f"{task} {name}"


def task_table(results: Sequence[Data], *, markdown: bool = False) -> str:
    """Return one line per task, one column per result: the fraction of its answers that are right.

    The last column is what one fixed answer per task would score.

    Args:
        results: of `examples.catbabi.experiment.run` on the same stories.
        markdown: in place of plain text.
    """
    guess = results[0]["guess"]
    rows = [
        [
            title(task),
            str(found["questions"]),
            *(f"{r['test']['tasks'][task]['accuracy']:.3f}" for r in results),
            f"{guess['tasks'][task]:.3f}",
        ]
        for task, found in results[0]["test"]["tasks"].items()
    ]
    pooled = [f"{r['test']['accuracy']:.3f}" for r in results]
    rows.append(["all", str(results[0]["test"]["questions"]), *pooled, f"{guess['accuracy']:.3f}"])
    return table(["task", "questions", *(r["label"] for r in results), "one answer"], rows, markdown=markdown)


def comparison(results: Sequence[Data], *, markdown: bool = False) -> str:
    """Return one line per result: what it has and what it took.

    Args:
        results: of `examples.catbabi.experiment.run`.
        markdown: in place of plain text.
    """
    head = ["model", "seed", "parameters", "lr", "steps", "CPU s", "accuracy", "converged", "evaluations per token"]
    rows = []
    for r in results:
        tested = r["test"]
        solved = "converged" in tested
        rows.append(
            [
                r["label"],
                str(r["seed"]),
                f"{r['parameters']:,}",
                f"{r['recipe']['loop']['lr']:g}",
                str(r["training"]["steps"]),
                f"{r['training']['seconds']['cpu']:.0f}",
                f"{tested['accuracy']:.3f}",
                f"{tested['converged']:.2f}" if solved else "",
                f"{tested['evaluations_per_token']:.1f}" if solved else "1",
            ]
        )
    return table(head, rows, markdown=markdown)


def verdict(results: Sequence[Data]) -> str:
    """Return in words on how many tasks the first result is ahead of the best of the others, and by how much in all."""
    first, *others = results
    second = max(others, key=lambda r: r["test"]["accuracy"])
    tasks = first["test"]["tasks"]
    ahead = [t for t in tasks if tasks[t]["accuracy"] > second["test"]["tasks"][t]["accuracy"]]
    gap = first["test"]["accuracy"] - second["test"]["accuracy"]
    which = f" ({', '.join(ahead)})" if ahead else ""
    return (
        f"{first['label']} is ahead of {second['label']} on {len(ahead)} of {len(tasks)} tasks{which}; "
        f"of all answers by {gap:+.3f}."
    )


def starved(first: Data, second: Data) -> str | None:
    """Return a warning if the second result had less CPU time to train than the first."""
    had = [r["training"]["seconds"]["cpu"] for r in (first, second)]
    if had[1] >= had[0]:
        return None
    return f"{second['label']} had less time ({had[1]:.0f} s) than {first['label']} ({had[0]:.0f} s): raise TWIN_STEPS."
