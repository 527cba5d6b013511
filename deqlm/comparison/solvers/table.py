"""The columns of a comparison of solvers, and its summary."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from deqlm.comparison.result import Column, last_column, name_column
from deqlm.comparison.solvers.entry import Entry, ProblemResult
from deqlm.reporting.table import aligned, amount, duration, filled, shortened, with_remarks

__all__ = ["COLUMNS", "LEGEND", "summary"]

LEGEND = (
    (
        "solved",
        "rows of B whose true relative residual ||f(z)-z|| / ||f(z)||, f in float64, is within 1.05 tolerance; in "
        "brackets the solver's own word per row",
    ),
    ("evals", "calls of f; row-evals: rows summed over those calls; token-evals: tokens summed over those rows"),
    ("time", "median run"),
    ("overhead", "time per evaluation beyond a bare call of f (below 0: noise)"),
    ("memory", "most bytes the solver held at once, in units of the state z"),
    ("residual", "that of the worst row"),
)


MOST = 3
"""Problems that a line of the summary names."""


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


COLUMNS = (
    name_column("solver"),
    Column("solved", lambda problem, entry: f"{entry.solved}/{problem.rows}", always=True),
    Column("evals", lambda _, e: str(e.evaluations) if e.ran or e.evaluations else "-", always=True),
    Column("row-evals", lambda _, entry: str(entry.row_evaluations), spare=2),
    Column("token-evals", lambda _, entry: str(entry.token_evaluations), where=lambda p: p.tokens, spare=3),
    Column("time", lambda _, entry: duration(entry.seconds)),
    Column("overhead", lambda _, entry: duration(entry.overhead), spare=1),
    Column("memory", lambda _, entry: "-" if entry.memory is None else f"{entry.memory:.1f}"),
    Column("residual", lambda _, entry: amount(entry.residual)),
    last_column(_remark),
)


def summary(problems: Sequence[ProblemResult], solvers: Sequence[str], width: int) -> str:
    """Return how many problems each solver solves, and its cost there relative to the cheapest solver of each."""
    problems = [p for p in problems if p.entries]
    rows = [["summary", f"solved of {len(problems)}", "evals / least", "time / least", "overhead"]]
    fails = ["fails on"]
    for solver in solvers:
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
            ]
        )
        fails.append("not installed" if absent else ("too small a budget: " if excused else "") + _some(failed))
    note = (
        "(evals and time: geometric mean, over the problems a solver solves, of its cost over the least of all solvers)"
    )
    return "\n".join([*with_remarks(aligned(rows), fails, width), filled(note, width)])


def _some(labels: Sequence[str]) -> str:
    more = len(labels) - MOST
    return ", ".join(labels[:MOST]) + (f" and {more} more" if more > 0 else "")


def _least(problem: ProblemResult, what: str) -> float:
    values = [getattr(e, what) for e in problem.entries if e.outcome == "solved"]
    return min(v for v in values if v)


def _mean(ratios: list[float]) -> str:
    return f"{statistics.geometric_mean(ratios):.2f}" if ratios else "-"
