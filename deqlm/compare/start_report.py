"""The table of a comparison of starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deqlm.compare.report import WIDTH, aligned, amount, duration, shortened, wrapped

if TYPE_CHECKING:
    from deqlm.compare.starts import StartComparison, StartEntry, StartProblem

__all__ = ["start_table"]

LEGEND = """\
zero      evaluations per row and solve from the start of the problem;  previous: from the solution of the map before
saved     share of them that the solution before saves, the first solve left out;  time: medians, summed over solves
unsolved  rows of all solves that miss the tolerance, from zero / from the solution before
apart     largest relative distance of the two answers: far above the tolerance, they are different fixed points
A solve begins with the point alone: no solver carries its history (Anderson's pairs, a Jacobian) to the next solve."""


def start_table(comparison: StartComparison) -> str:
    """Return the report: a block per sequence."""
    blocks = [_block(problem) for problem in comparison.problems]
    blocks.append(LEGEND)
    if comparison.interrupted:
        blocks.append("interrupted: this is what was done until then")
    return "\n\n".join(blocks)


def _block(problem: StartProblem) -> str:
    head = [shortened(f"{problem.label}: {problem.title}", WIDTH)]
    if problem.message:
        return "\n".join([*head, *wrapped(f"not compared: {problem.message}")])
    head.append(f"  B={problem.rows}, N={problem.unknowns}, tolerance {problem.tol:g}, {problem.solves} solves")
    rows = [["  solver", "zero", "previous", "saved", "time zero", "time previous", "unsolved", "apart", ""]]
    rows += [_cells(entry) for entry in problem.entries]
    lines = [*head, *aligned(rows, left=(0, 8))]
    for entry in problem.entries:
        if entry.message:
            lines += wrapped(f"{entry.solver} {entry.outcome}: {entry.message}")
    return "\n".join(lines)


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
