"""The table of a comparison of solvers."""

from __future__ import annotations

import statistics

from deqlm.comparison.result import Comparison, Entry, ProblemResult
from deqlm.reporting.table import WIDTH, aligned, amount, block, duration, joined, shortened, wrapped

__all__ = ["table"]

LEGEND = """\
solved    rows of B whose true relative residual ||f(z)-z|| / ||f(z)||, f in float64, is within 1.05 tolerance;
          in brackets the solver's own word per row
evals     calls of f;  row-evals: rows summed over those calls;  token-evals: tokens summed over those rows
time      median run
overhead  time per evaluation beyond a bare call of f (below 0: noise)
memory    most bytes the solver held at once, in units of the state z;  residual: that of the worst row"""


def table(comparison: Comparison) -> str:
    """Return the whole report: a block per problem, then the summary."""
    blocks = [_block(problem) for problem in comparison.problems]
    if len(comparison.problems) > 1:
        blocks.append(_summary(comparison))
    return joined(blocks, LEGEND, comparison.interrupted)


def _block(problem: ProblemResult) -> str:
    facts = [
        f"  B={problem.rows}, N={problem.unknowns}, tolerance {problem.tol:g}, at most {problem.max_iter} evaluations, "
        f"bare f {duration(problem.f_seconds)}"
    ]
    for line in problem.note.splitlines():
        facts += wrapped(f"note: {line}")
    rows = [["  solver", "solved", "evals", "row-evals", "token-evals", "time", "overhead", "memory", "residual", ""]]
    rows += [_cells(problem, entry) for entry in problem.entries]
    if not problem.tokens:
        rows = [row[:4] + row[5:] for row in rows]
    said = filter(None, map(_said, problem.entries))
    return block(problem, facts, rows, (0, len(rows[0]) - 1), said, absent="not built")


def _said(entry: Entry) -> str:
    if not entry.ran:
        return f"{entry.solver} {entry.outcome}: {entry.message}"
    return f"{entry.solver} {entry.remark}" if entry.remark else ""


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
    name = "  " + shortened(entry.solver, 34)
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
