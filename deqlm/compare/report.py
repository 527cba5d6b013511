"""The table on the terminal: plain text, at most 120 columns."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deqlm.compare.result import Comparison, Entry, ProblemResult

if TYPE_CHECKING:
    from deqlm.compare.gradients import GradientComparison, GradientEntry, GradientProblem

__all__ = ["WIDTH", "aligned", "amount", "duration", "gradient_table", "shortened", "table", "wrapped"]

WIDTH = 120
LEGEND = """\
solved    rows of B whose true relative residual ||f(z)-z|| / ||f(z)||, f in float64, is within 1.05 tolerance;
          in brackets the solver's own word per row
evals     calls of f;  row-evals: rows summed over those calls;  token-evals: tokens summed over those rows
time      median run
overhead  time per evaluation beyond a bare call of f (below 0: noise)
memory    most bytes the solver held at once, in units of the state z;  residual: that of the worst row"""

GRADIENT_LEGEND = """\
cosine    with the exact gradient, a dense float64 solve with I - J^T;  error: relative to its norm
evals     calls of f, forward and backward;  vjps: times backward went through an evaluation of f
forward, backward: median times; of one method the sum is what a training step pays"""


def table(comparison: Comparison) -> str:
    """Return the whole report: a block per problem, then the summary."""
    blocks = [_block(problem) for problem in comparison.problems]
    if len(comparison.problems) > 1:
        blocks.append(_summary(comparison))
    blocks.append(LEGEND)
    if comparison.interrupted:
        blocks.append("interrupted: this is what was done until then")
    return "\n\n".join(blocks)


def gradient_table(comparison: GradientComparison) -> str:
    """Return the report of a comparison of gradients: a block per problem."""
    blocks = [_gradient_block(problem) for problem in comparison.problems]
    blocks.append(GRADIENT_LEGEND)
    if comparison.interrupted:
        blocks.append("interrupted: this is what was done until then")
    return "\n\n".join(blocks)


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Return lines with columns padded to equal width, right-aligned except ``left``; the last one is not padded."""
    count = len(rows[0])
    widths = [max(len(row[i]) for row in rows) for i in range(count)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def duration(seconds: float | None) -> str:
    """Return a time with three digits and its unit.

    Examples:
        >>> duration(0.00123), duration(-2e-6), duration(None)
        ('1.23 ms', '-2.00 us', '-')
    """
    if seconds is None:
        return "-"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(seconds) >= factor or unit == "us":
            value = seconds / factor
            digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError


def amount(value: float | None) -> str:
    """Return a residual or an error with two digits, ``inf`` or ``-``."""
    if value is None:
        return "-"
    return f"{value:.1e}" if math.isfinite(value) else "inf"


def shortened(text: str, width: int) -> str:
    """Return ``text`` cut to ``width`` with three dots."""
    return text if len(text) <= width else text[: width - 3] + "..."


def wrapped(text: str) -> list[str]:
    """Return ``text`` on at most three indented lines."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        max_lines=3,
        placeholder="...",
        break_on_hyphens=False,
    )


def _block(problem: ProblemResult) -> str:
    head = [shortened(f"{problem.label}: {problem.title}", WIDTH)]
    if problem.message:
        return "\n".join([*head, *wrapped(f"not built: {problem.message}")])
    head.append(
        f"  B={problem.rows}, N={problem.unknowns}, tolerance {problem.tol:g}, at most {problem.max_iter} evaluations, "
        f"bare f {duration(problem.f_seconds)}"
    )
    for line in problem.note.splitlines():
        head += wrapped(f"note: {line}")
    rows = [["solver", "solved", "evals", "row-evals", "token-evals", "time", "overhead", "memory", "residual", ""]]
    rows += [_cells(problem, entry) for entry in problem.entries]
    if not problem.tokens:
        rows = [row[:4] + row[5:] for row in rows]
    lines = [*head, *aligned([["  " + row[0], *row[1:]] for row in rows], left=(0, len(rows[0]) - 1))]
    for entry in problem.entries:
        if not entry.ran:
            lines += wrapped(f"{entry.solver} {entry.outcome}: {entry.message}")
        elif entry.remark:
            lines += wrapped(f"{entry.solver} {entry.remark}")
    return "\n".join(lines)


def _summary(comparison: Comparison) -> str:
    """Return how many problems each solver solves, and its cost there relative to the cheapest solver of each."""
    problems = [p for p in comparison.problems if p.entries]
    rows = [["summary", f"solved of {len(problems)}", "evals / least", "time / least", "overhead", "fails on"]]
    for solver in comparison.solvers:
        mine = [(p, e) for p in problems for e in p.entries if e.solver == solver]
        good = [(p, e) for p, e in mine if e.outcome == "solved"]
        evals = [e.evaluations / _least(p, "evaluations") for p, e in good]
        times = [e.seconds / _least(p, "seconds") for p, e in good if e.seconds]
        overheads = [e.overhead for _, e in mine if e.overhead is not None]
        failed = [p.label for p, e in mine if e.outcome != "solved"]
        excused = failed and all(e.remark for _, e in mine if e.outcome != "solved")
        absent = all(e.outcome == "not installed" for _, e in mine)
        rows.append(
            [
                shortened(solver, 34),
                str(len(good)),
                _mean(evals),
                _mean(times),
                duration(statistics.median(overheads)) if overheads else "-",
                "not installed" if absent else ("too small a budget: " if excused else "") + ", ".join(failed),
            ]
        )
    lines = [shortened(line, WIDTH) for line in aligned(rows, left=(0, 5))]
    note = (
        "(evals and time: geometric mean, over the problems a solver solves, of its cost over the least of all solvers)"
    )
    return "\n".join([*lines, note])


def _least(problem: ProblemResult, what: str) -> float:
    values = [getattr(e, what) for e in problem.entries if e.outcome == "solved"]
    return min(v for v in values if v)


def _mean(ratios: list[float]) -> str:
    return f"{statistics.geometric_mean(ratios):.2f}" if ratios else "-"


def _cells(problem: ProblemResult, entry: Entry) -> list[str]:
    name = shortened(entry.solver, 34)
    if not entry.ran:
        spent = str(entry.evaluations) if entry.evaluations else "-"
        return [name, f"0/{problem.rows}", spent, *"-" * 6, f"{entry.outcome.upper()}"]
    memory = "-" if entry.memory is None else f"{entry.memory:.1f}"
    return [
        name,
        f"{entry.solved}/{problem.rows}",
        str(entry.evaluations),
        str(entry.row_evaluations),
        str(entry.token_evaluations),
        duration(entry.seconds),
        duration(entry.overhead),
        memory,
        amount(entry.residual),
        _remark(entry),
    ]


def _remark(entry: Entry) -> str:
    parts = []
    if entry.outcome == "unsolved":
        failed = [f"{n} {name}" for name, n in entry.statuses.items() if name not in ("CONVERGED", "BUDGET")]
        parts.append("FAILS" + (f" ({', '.join(failed)})" if failed else ""))
    if entry.claimed > entry.solved:
        parts.append(f"claims {entry.claimed}")
    if not entry.counts_agree:
        parts.append("miscounts")
    return ", ".join(parts)


def _gradient_block(problem: GradientProblem) -> str:
    head = [shortened(f"{problem.label}: {problem.title}", WIDTH)]
    if problem.message:
        return "\n".join([*head, *wrapped(f"not compared: {problem.message}")])
    head.append(
        f"  B={problem.rows}, N={problem.unknowns}, forward tolerance {problem.tol:g}, "
        f"gradient of {problem.parameters} numbers"
    )
    rows = [["  gradient", "cosine", "error", "evals", "vjps", "forward", "backward", "solver", ""]]
    rows += [_gradient_cells(entry) for entry in problem.entries]
    lines = [*head, *aligned(rows, left=(0, 7, 8))]
    for entry in problem.entries:
        if entry.message:
            lines += wrapped(f"{entry.gradient} {entry.outcome}: {entry.message}")
    return "\n".join(lines)


def _gradient_cells(entry: GradientEntry) -> list[str]:
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
