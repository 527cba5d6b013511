"""What the commands print: tables and boards."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from examples.puzzles.data import Maze, Sudoku, problem_named
from examples.state_tracking.report import table

__all__ = [
    "board_text",
    "breadth_table",
    "budget_table",
    "chosen",
    "difficulty_table",
    "rate_table",
    "residual_table",
    "spread_table",
]

Data = dict[str, Any]
RULES = ("least residual", "vote")
"""By which one of several answers can be chosen without knowing the right one."""


def budget_table(results: Sequence[Data], *, markdown: bool = False) -> str:
    """Return one line per result: what it has, what it took, and exact answers behind so many evaluations."""
    budgets = sorted({row["evaluations"] for r in results for row in r["budgets"]})
    head = ["model", "seed", "parameters", "lr", "steps", "CPU s", *(f"K={k}" for k in budgets)]
    rows = []
    for r in results:
        found = {row["evaluations"]: row["exact"] for row in r["budgets"]}
        cells = [r["label"], str(r["seed"]), f"{r['parameters']:,}", f"{r['recipe']['loop']['lr']:g}"]
        cells += [str(r["training"]["steps"]), f"{r['training']['seconds']['cpu']:.0f}"]
        rows.append([*cells, *(f"{found[k]:.3f}" if k in found else "" for k in budgets)])
    return table(head, rows, markdown=markdown)


def spread_table(results: Sequence[Data], *, markdown: bool = False) -> str:
    """Return one line per label: mean, standard deviation and range over seeds, behind every number of evaluations."""
    labels = list(dict.fromkeys(r["label"] for r in results))
    budgets = sorted({row["evaluations"] for r in results for row in r["budgets"]})
    rows = []
    for label in labels:
        group = [r for r in results if r["label"] == label]
        for k in budgets:
            values = [row["exact"] for r in group for row in r["budgets"] if row["evaluations"] == k]
            if not values:
                continue
            spread = f"{stdev(values):.3f}" if len(values) > 1 else ""
            each = " ".join(f"{v:.3f}" for v in values)
            rows.append([label, str(k), f"{mean(values):.3f}", spread, each])
    return table(["model", "evaluations", "exact, mean", "deviation", "seeds"], rows, markdown=markdown)


def residual_table(result: Data, *, markdown: bool = False) -> str:
    """Return how often converged answers are right, and others, behind every number of evaluations."""
    head = ["evaluations", "exact", "cells", "median residual", "converged", "exact if converged", "exact if not"]
    rows = []
    for row in result["budgets"]:
        cells = [str(row["evaluations"]), f"{row['exact']:.3f}", f"{row['cells']:.3f}", f"{row['residual']:.1e}"]
        shares = [row["converged"], row["exact_converged"], row["exact_others"]]
        rows.append([*cells, *("" if s is None else f"{s:.3f}" for s in shares)])
    return table(head, rows, markdown=markdown)


def breadth_table(result: Data, *, markdown: bool = False) -> str:
    """Return what several starts bring, by the rule that chooses among them; behind it what `chosen` says."""
    rows = [
        [str(row["evaluations"]), str(row["starts"]), *(f"{row[rule]:.3f}" for rule in ("mean", *RULES, "any"))]
        for row in result["breadth"]
    ]
    drawn = table(["evaluations", "starts", "mean", *RULES, "any"], rows, markdown=markdown)
    rule, best, tested = chosen(result)
    how = f"{best['starts']} starts of {best['evaluations']} evaluations, chosen by {rule}"
    return f"{drawn}\n\nBest on validation: {how} ({best[rule]:.3f} there); on test {tested[rule]:.3f}."


def chosen(result: Data) -> tuple[str, Data, Data]:
    """Return the rule that is best on validation, its line there, and the same line on test; the cheapest of equals."""
    lines = zip(result["breadth_valid"], result["breadth"], strict=True)
    cases = [(rule, valid, test) for valid, test in lines for rule in RULES]
    return max(cases, key=lambda case: (case[1][case[0]], -case[1]["starts"] * case[1]["evaluations"]))


def board_text(problem: str, cells: Sequence[int], answer: Sequence[int] | None = None) -> str:
    """Return a puzzle as text, with its answer filled in where there is one.

    Args:
        problem: its name.
        cells: tokens.
        answer: classes.
    """
    kind = problem_named(problem)
    if isinstance(kind, Sudoku):
        return kind.board.write(cells if answer is None else [a + 1 for a in answer])
    assert isinstance(kind, Maze)
    marks = ["#.SG"[cell] for cell in cells]
    if answer is not None:
        marks = ["o" if on and mark == "." else mark for mark, on in zip(marks, answer, strict=True)]
    side = kind.side
    return "\n".join(" ".join(marks[start : start + side]) for start in range(0, side**2, side))


def rate_table(tried: Sequence[Data], *, markdown: bool = False) -> str:
    """Return one line per label: exact answers at the best number of evaluations, at each learning rate."""
    rates = sorted({r["recipe"]["loop"]["lr"] for r in tried})
    rows = []
    for label in dict.fromkeys(r["label"] for r in tried):
        found = {r["recipe"]["loop"]["lr"]: max(b["exact"] for b in r["budgets"]) for r in tried if r["label"] == label}
        rows.append([label, *(f"{found[rate]:.3f}" if rate in found else "" for rate in rates)])
    return table(["model", *(f"lr={rate:g}" for rate in rates)], rows, markdown=markdown)


def difficulty_table(result: Data, *, markdown: bool = False) -> str:
    """Return one line per rating: puzzles, share solved, and evaluations."""
    head = ["rating", "puzzles", "exact", "evaluations to .01", "converged", "right from"]
    rows = []
    for row in result["difficulty"]:
        cells = [str(row["rating"]), str(row["puzzles"]), f"{row['exact']:.3f}", f"{row['evaluations']:.1f}"]
        settled = "" if row["settled"] is None else f"{row['settled']:.1f}"
        rows.append([*cells, f"{row['converged']:.3f}", settled])
    return table(head, rows, markdown=markdown)
