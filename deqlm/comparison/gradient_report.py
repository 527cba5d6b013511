"""The table of a comparison of gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deqlm.reporting.table import amount, block, duration, joined, shortened

if TYPE_CHECKING:
    from deqlm.comparison.gradients import GradientComparison, GradientEntry, GradientProblem

__all__ = ["gradient_table"]

LEGEND = """\
cosine    with the exact gradient, a dense float64 solve with I - J^T;  error: relative to its norm
evals     calls of f, forward and backward;  vjps: times backward went through an evaluation of f
forward, backward: median times; of one method the sum is what a training step pays"""


def gradient_table(comparison: GradientComparison) -> str:
    """Return the report of a comparison of gradients: a block per problem."""
    return joined(map(_block, comparison.problems), LEGEND, comparison.interrupted)


def _block(problem: GradientProblem) -> str:
    facts = (
        f"  B={problem.rows}, N={problem.unknowns}, forward tolerance {problem.tol:g}, "
        f"gradient of {problem.parameters} numbers"
    )
    rows = [["  gradient", "cosine", "error", "evals", "vjps", "forward", "backward", "solver", ""]]
    rows += [_cells(entry) for entry in problem.entries]
    said = [f"{entry.gradient} {entry.outcome}: {entry.message}" for entry in problem.entries if entry.message]
    return block(problem, [facts], rows, (0, 7, 8), said)


def _cells(entry: GradientEntry) -> list[str]:
    name = "  " + shortened(entry.gradient, 34)
    if entry.cosine is None:
        return [name, *"-" * 7, entry.outcome.upper()]
    forward, backward = entry.seconds or (None, None)
    return [
        name,
        f"{entry.cosine:.6f}",
        amount(entry.error),
        str(entry.evaluations),
        str(entry.vjps),
        duration(forward),
        duration(backward),
        entry.solver,
        entry.remark,
    ]
