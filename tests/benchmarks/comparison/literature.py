"""The page "Problems of the literature": what stands between its markers is made from a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deqlm.comparison.literature.entry import LiteratureEntry, LiteratureRow
from deqlm.comparison.literature.run import compare_literature
from deqlm.comparison.literature.table import cell
from deqlm.comparison.literature.verdict import behind, false_words, scores, unsolved
from deqlm.reporting.page import blank, redraw, table
from deqlm.reporting.table import amount

__all__ = ["PAGE", "draw_literature", "literature_blocks", "write_literature"]

PAGE = "literature.md"
TITLE = "Problems of the literature"


def write_literature(folder: Path, progress: bool | None = None) -> list[Path]:
    """Run the whole suite, write ``records/literature.json`` and its table, and draw the page in ``folder`` anew.

    Args:
        folder: such as ``docs``.
        progress: draw a progress bar on stderr; None when that is a terminal.

    Raises:
        ValueError: the page lacks a marker.
    """
    written = compare_literature(progress=progress).save(folder / "records", plots=False)
    return [*written, draw_literature(folder)]


def draw_literature(folder: Path) -> Path:
    """Draw every block of the page anew from the record in ``folder``; a page that is not there is made.

    Raises:
        ValueError: the page lacks a marker.
    """
    record = json.loads((folder / "records" / "literature.json").read_text(encoding="utf-8"))
    made = literature_blocks(record)
    return redraw(folder / PAGE, made, new=blank(TITLE, dict.fromkeys(made, "")))


def literature_blocks(record: dict[str, Any]) -> dict[str, str]:
    """Return the markdown of every block, by name, from plain data as `LiteratureComparison.to_dict` returns it."""
    problems = [_row(one) for one in record["problems"]]
    return {
        "machine": _machine(record),
        "scores": _scores(problems),
        "behind": _behind(problems),
        "false": _false(problems),
        "problems": _problems(problems),
    }


def _row(one: dict[str, Any]) -> LiteratureRow:
    known = LiteratureEntry.__dataclass_fields__
    entries = [LiteratureEntry(**{k: v for k, v in entry.items() if k in known}) for entry in one["entries"]]
    return LiteratureRow(**{**one, "entries": entries})


def _machine(record: dict[str, Any]) -> str:
    e = record["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in e["packages"].items() if version)
    return (
        f"{e['cpu']}, {e['cores']} cores, one thread, {e['platform']}, Python {e['python']}; deqlm {e['deqlm']}, "
        f"commit `{str(e['commit'])[:12]}`; {versions}. {record['seconds']:.0f} s in all."
    )


def _scores(problems: list[LiteratureRow]) -> str:
    rows = []
    for score in scores(problems):
        if score.installed:
            counts = [*score.signs, score.either, score.false, score.raised]
            evals = "-" if score.evaluations is None else f"{score.evaluations:g}"
            rows.append([score.solver, *map(str, counts), evals, f"{score.seconds:.1f} s"])
    head = ["solver", f"solved of {len(problems)} as z - F", "as z + F", "either", "false words", "raised"]
    text = table([*head, "median calls", "time"], rows)
    absent = [score.solver for score in scores(problems) if not score.installed]
    return text + (f"\n\nNot installed here: {', '.join(absent)}." if absent else "")


def _behind(problems: list[LiteratureRow]) -> str:
    lines = [f"- {name} as {sign}: {', '.join(peers)}" for name, sign, peers in behind(problems)]
    nobody = unsolved(problems)
    said = "\n".join(lines) if lines else "Nothing that a peer solves is left unsolved by ours, in either form."
    return said + (f"\n\nNobody solves {', '.join(nobody)}." if nobody else "")


def _false(problems: list[LiteratureRow]) -> str:
    rows = [[entry.solver, name, entry.form, amount(entry.residual)] for name, entry in false_words(problems)]
    return table(["solver", "problem", "form", "true residual"], rows) if rows else "None."


def _problems(problems: list[LiteratureRow]) -> str:
    solvers = list(dict.fromkeys(entry.solver for problem in problems for entry in problem.entries))
    rows = []
    for problem in problems:
        cells = [" / ".join(cell(e) for e in problem.entries if e.solver == solver) for solver in solvers]
        rows.append([problem.label, problem.title, str(problem.unknowns), *cells])
    return table(["problem", "source", "N", *solvers], rows)
