"""The table of a comparison of starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deqlm.reporting.table import amount, block, duration, joined, shortened

if TYPE_CHECKING:
    from deqlm.comparison.starts import StartComparison, StartEntry, StartProblem

__all__ = ["start_table"]

LEGEND = """\
zero      evaluations per row and solve from the start of the problem;  previous: from the solution of the map before
saved     share of them that the solution before saves, the first solve left out;  time: medians, summed over solves
unsolved  rows of all solves that miss the tolerance, from zero / from the solution before
apart     largest relative distance of the two answers: far above the tolerance, they are different fixed points
A solve begins with the point alone: no solver carries its history (Anderson's pairs, a Jacobian) to the next solve."""


def start_table(comparison: StartComparison) -> str:
    """Return the report: a block per sequence."""
    return joined(map(_block, comparison.problems), LEGEND, comparison.interrupted)


def _block(problem: StartProblem) -> str:
    facts = f"  B={problem.rows}, N={problem.unknowns}, tolerance {problem.tol:g}, {problem.solves} solves"
    rows = [["  solver", "zero", "previous", "saved", "time zero", "time previous", "unsolved", "apart", ""]]
    rows += [_cells(entry) for entry in problem.entries]
    said = [f"{entry.solver} {entry.outcome}: {entry.message}" for entry in problem.entries if entry.message]
    return block(problem, [facts], rows, (0, 8), said)


def _cells(entry: StartEntry) -> list[str]:
    name = "  " + shortened(entry.solver, 34)
    if not entry.ran:
        return [name, *"-" * 7, entry.outcome.upper()]
    return [
        name,
        f"{entry.steps_zero:.1f}",
        f"{entry.steps_previous:.1f}",
        f"{entry.saved:.0%}",
        duration(sum(entry.seconds_zero)),
        duration(sum(entry.seconds_previous)),
        f"{entry.unsolved_zero}/{entry.unsolved_previous}",
        amount(entry.apart),
        entry.verdict,
    ]
