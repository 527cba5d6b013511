"""The table of a run over the literature: a line per problem and form, then who solves how many."""

from __future__ import annotations

from collections.abc import Sequence

from deqlm.comparison.literature.entry import LiteratureEntry, LiteratureRow
from deqlm.comparison.literature.verdict import behind, false_words, scores, unsolved
from deqlm.reporting.table import aligned, amount, duration, shortened, wrapped

__all__ = ["LEGEND", "cell", "table_blocks"]

LEGEND = (
    ("a number", "calls of the function until ||F(z)|| <= 1e-8, true in float64, at the point that was returned"),
    ("-", "not solved; FALSE: not solved, and the solver says CONVERGED; raised: it raised; none: not installed"),
    (
        "form",
        "z - F and z + F: how the system F(z) = 0 became z = f(z); f: the problem is a map. Solvers of F(z) = 0 get F "
        "and stand in the first line of a problem",
    ),
)


def table_blocks(problems: Sequence[LiteratureRow], solvers: list[str], width: int) -> list[str]:
    """Return the parts of the report: who is who, a line per problem and form, who solves how many.

    Solvers that do not fit beside each other in ``width`` columns stand in a table of their own.
    """
    numbers = "\n".join(wrapped("solvers: " + ", ".join(f"({i}) {name}" for i, name in enumerate(solvers, 1)), width))
    return [numbers, *_tables(problems, list(enumerate(solvers, 1)), width), _summary(problems, width)]


def _tables(problems: Sequence[LiteratureRow], solvers: list[tuple[int, str]], width: int) -> list[str]:
    rows = [["problem", "N", "form", *(f"({i})" for i, _ in solvers)]]
    for problem in problems:
        rows += _lines(problem, [name for _, name in solvers])
    lines = aligned(rows, left=(0, 2))
    if max(map(len, lines)) <= width or len(solvers) < 2:
        return ["\n".join(lines)]
    half = (len(solvers) + 1) // 2
    return [*_tables(problems, solvers[:half], width), *_tables(problems, solvers[half:], width)]


def cell(entry: LiteratureEntry | None) -> str:
    """Return what a table shows of one solve."""
    if entry is None:
        return ""
    if entry.outcome == "solved":
        return str(entry.evaluations)
    if entry.false:
        return "FALSE"
    return {"unsolved": "-", "raised": "raised", "not installed": "none"}[entry.outcome]


def _lines(problem: LiteratureRow, solvers: list[str]) -> list[list[str]]:
    held = {(entry.solver, entry.form): entry for entry in problem.entries}
    forms = [form for form in ("f", "z - F", "z + F") if any(form == known for _, known in held)] or ["F"]
    lines = []
    for i, form in enumerate(forms):
        entries = [held.get((name, form)) or (held.get((name, "F")) if i == 0 else None) for name in solvers]
        head = [shortened(problem.label, 28), str(problem.unknowns)] if i == 0 else ["", ""]
        lines.append([*head, form, *map(cell, entries)])
    return lines


def _summary(problems: Sequence[LiteratureRow], width: int) -> str:
    head = ["solver", "z - F", "z + F", "either", "false words", "raised", "evals", "time"]
    rows = [head]
    for score in scores(problems):
        if not score.installed:
            rows.append([score.solver, "not installed", *[""] * 6])
            continue
        evals = "-" if score.evaluations is None else f"{score.evaluations:g}"
        counts = (*score.signs, score.either, score.false, score.raised)
        rows.append([shortened(score.solver, 34), *map(str, counts), evals, duration(score.seconds)])
    lines = [f"solved of {len(problems)}", *aligned(rows)]
    for name, sign, peers in behind(problems):
        lines += wrapped(f"only peers solve {name} as {sign}: {', '.join(peers)}", width)
    for name, entry in false_words(problems):
        lines += wrapped(f"false: {entry.solver} on {name} as {entry.form}, ||F|| = {amount(entry.residual)}", width)
    nobody = unsolved(problems)
    if nobody:
        lines += wrapped(f"nobody solves {', '.join(nobody)}", width)
    return "\n".join(lines)
