"""Keeps results: copies them from the folders of runs into docs/records, and draws page and pictures from there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqlm.reporting.page import redraw
from examples.loop.results import read_json
from examples.puzzles import report

__all__ = ["DOCS", "blocks", "copy_records", "draw_page", "illustrate"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORDS = Path("records/puzzles")
PAGE = "puzzles.md"

Data = dict[str, Any]


def copy_records(runs: Path, docs: Path = DOCS) -> list[Path]:
    """Copy the results below ``runs`` into the records; return what was written.

    Args:
        runs: the folder that holds "demo", "six", "twins", "maze" and "nine", as the commands leave them.
        docs: the folder of the documentation.

    Raises:
        FileNotFoundError: there is nothing to copy.
    """
    found = {f"demo-{path.parent.name}": path for path in sorted(runs.glob("demo/*/results.json"))}
    found |= {f"maze-{path.parent.name}": path for path in sorted(runs.glob("maze/*/results.json"))}
    found |= {"six": runs / "six/results.json", "twins": runs / "twins/results.json", "nine": runs / "nine/tried.json"}
    found = {name: path for name, path in found.items() if path.exists()}
    if not found:
        raise FileNotFoundError(f"{runs} holds no results: run demo, six, twins, maze or nine first")
    folder = docs / RECORDS
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, path in found.items():
        written.append(folder / f"{name}.json")
        written[-1].write_text(json.dumps(read_json(path), separators=(",", ":")) + "\n")
    return written


def blocks(docs: Path = DOCS) -> dict[str, str]:
    """Return the parts of the page that are drawn from records, by name; each says so where it has none."""
    records = _records(docs)
    demos = [r for name, data in records.items() if name.startswith("demo") for r in data["results"]]
    mazes = [r for name, data in records.items() if name.startswith("maze") for r in data["results"]]
    sixes = records.get("six", {}).get("results", [])
    return {
        "demo": _table(report.budget_table, demos, "demo"),
        "six": _table(report.spread_table, sixes, "six"),
        "six-residuals": _first(report.residual_table, sixes, "six"),
        "six-difficulty": _first(report.difficulty_table, sixes, "six"),
        "six-breadth": _first(report.breadth_table, sixes, "six"),
        "twins": _twins(records.get("twins")),
        "maze": _first(report.residual_table, mazes, "maze"),
        "nine": _nine(records.get("nine")),
    }


def draw_page(docs: Path = DOCS) -> Path:
    """Put the blocks into the page, between their marks; return the page.

    Raises:
        ValueError: the page has no place for a block.
    """
    return redraw(docs / PAGE, blocks(docs))


def illustrate(docs: Path = DOCS) -> list[Path]:
    """Draw the pictures of the page, and that of the README, into docs/assets; return those that have a record.

    Raises:
        ImportError: matplotlib is missing.
    """
    from examples.puzzles import plots

    records = _records(docs)
    sixes = records.get("six", {}).get("results", [])
    mazes = [r for name, data in records.items() if name.startswith("maze") for r in data["results"]]
    twins = records.get("twins", {}).get("results", [])
    written = []
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        if sixes:
            for name, draw in (("calibration", plots.calibration), ("difficulty", plots.difficulty)):
                draw(sixes[0], here / f"puzzles_{name}")
            plots.breadth(sixes[0], here / "puzzles_breadth")
            plots.boards(sixes[0], here / "puzzles")
            plots.animation(sixes[0], here / "puzzles")
            plots.accuracy_by_evaluations(sixes, here / "puzzles_accuracy")
        if twins:
            plots.accuracy_by_evaluations(twins, here / "puzzles_twins")
        if mazes:
            plots.boards(mazes[0], here / "puzzles_maze")
        (docs / "assets").mkdir(exist_ok=True)
        for path in sorted([*here.glob("*.svg"), *here.glob("*.gif")]):
            written.append(docs / "assets" / path.name)
            shutil.copyfile(path, written[-1])
    return written


def _records(docs: Path) -> dict[str, Data]:
    return {path.stem: read_json(path) for path in sorted((docs / RECORDS).glob("*.json"))}


def _missing(command: str) -> str:
    return f"No record yet: `python -m examples.puzzles {command}`."


def _table(draw: Any, results: Sequence[Data], command: str) -> str:
    return f"{draw(results, markdown=True)}\n\n{_machine(results[0])}" if results else _missing(command)


def _first(draw: Any, results: Sequence[Data], command: str) -> str:
    return f"Seed {results[0]['seed']}:\n\n{draw(results[0], markdown=True)}" if results else _missing(command)


def _twins(data: Data | None) -> str:
    if data is None:
        return _missing("twins")
    parts = [
        "Validation, one seed that no comparison shows, by learning rate:",
        report.rate_table(data["search"], markdown=True),
    ]
    parts += ["Test, every model at its own rate:", report.budget_table(data["results"], markdown=True)]
    return "\n\n".join([*parts, _machine(data["results"][0])])


def _nine(data: Data | None) -> str:
    if data is None:
        return _missing("nine --try-steps 3")
    losses = " ".join(f"{loss:.3f}" for loss in data["losses"])
    what = f"{len(data['losses'])} steps of {data['rows']} puzzles, {data['parameters']:,} parameters: losses {losses}"
    cost = f"{data['seconds_per_step']:.1f} s a step. The whole recipe takes {data['flop']:.2g} operations."
    return f"{what}, {cost} {_machine(data)}"


def _machine(result: Data) -> str:
    where = result["environment"]
    torch = where["packages"]["torch"]
    names = f"deqlm {where['deqlm']}, torch {torch}, Python {where['python']}, {where['platform']}"
    commit = (where["commit"] or "unknown")[:8]
    return f"{names}, {where['cpu']}, one thread per process, commit {commit}, `{' '.join(where['argv'])}`."
