"""Keeps results: copies them from the folders of runs into docs/records, and draws page and pictures from there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqlm.reporting import page
from examples.graph import report as graph
from examples.loop.results import read_json
from examples.state_tracking import report
from examples.state_tracking.automata import sessions
from examples.state_tracking.automata import table as automata_table
from examples.state_tracking.automata.collapse import describe as describe_collapse
from examples.state_tracking.automata.recipe import OURS
from examples.state_tracking.full import TRAINED
from examples.state_tracking.small import PARTS
from examples.vision import report as vision

__all__ = ["DOCS", "blocks", "copy_records", "illustrate", "redraw"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORDS = Path("records/state_tracking")
ALONE = ("automata", "traces", "collapse", "schedule", "groups")
"""Commands whose one result lies in the folder and the file of their name."""

STORIES = {"graph": graph.block, "vision": vision.block}
"""Examples of one run a seed, whose records stand beside the folder of these."""

LONGEST = 256
"""Tokens up to which a record keeps what was measured at every position."""

Data = dict[str, Any]


def copy_records(runs: Path, docs: Path = DOCS) -> list[Path]:
    """Copy the results below ``runs`` into the records; return what was written.

    Args:
        runs: the folder that holds "demo", "cpu", "full" and the others, as the commands leave them.
        docs: the folder of the documentation.

    Raises:
        FileNotFoundError: there is nothing to copy.
    """
    found = {f"demo-{path.parent.name}": path for path in sorted(runs.glob("demo/*/result.json"))}
    found |= {f"cpu-{part}": runs / f"cpu/{part}.json" for part in PARTS}
    found |= {f"full-{path.stem}": path for path in sorted(runs.glob("full/*.json"))}
    found |= {name: runs / name / f"{name}.json" for name in ALONE}
    found = {name: path for name, path in found.items() if path.exists()}
    if not found:
        raise FileNotFoundError(f"{runs} holds no results: run demo, cpu, full, {', '.join(ALONE)} first")
    folder = docs / RECORDS
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, path in found.items():
        written.append(folder / f"{name}.json")
        written[-1].write_text(json.dumps(_slim(read_json(path)), separators=(",", ":")) + "\n")
    return written


def _slim(data: Any) -> Any:
    """Return data without lists of one number per position of long sequences."""
    if isinstance(data, dict):
        kept = {
            name: value
            for name, value in data.items()
            if not (name in ("accuracy", "token_steps") and isinstance(value, list) and len(value) > LONGEST)
        }
        return {name: _slim(value) for name, value in kept.items()}
    return [_slim(value) for value in data] if isinstance(data, list) else data


def blocks(docs: Path = DOCS) -> dict[str, str]:
    """Return the parts of the page that are drawn from records, by name; each says so where it has none."""
    records = _records(docs)
    made = {}
    for group in ("S3", "Z2"):
        demos = [data for name, data in records.items() if name.startswith(f"demo-{group}-")]
        made[f"demo-{group}"] = _demos(group, demos) if demos else _missing(f"demo --group {group}")
    for part in PARTS:
        data = records.get(f"cpu-{part}")
        made[f"cpu-{part}"] = _part(part, data) if data else _missing(f"cpu --only {part}")
    tables = (_automata, _traces, _collapse, _schedule, _groups)
    for name, draw in zip(ALONE, tables, strict=True):
        made[name] = draw(records[name]) if name in records else _missing(name)
    made |= {name: _story(name, docs / f"records/{name}.json") for name in STORIES}
    full = {name.removeprefix("full-"): data for name, data in records.items() if name.startswith("full-")}
    made["full"] = "\n\n".join(_full(group, data) for group, data in full.items()) if full else _missing("full")
    return made


def redraw(docs: Path = DOCS) -> Path:
    """Put the blocks into docs/results.md, between their marks; return the page.

    Raises:
        ValueError: the page has no place for a block.
    """
    return page.redraw(docs / "results.md", blocks(docs))


def illustrate(docs: Path = DOCS) -> list[Path]:
    """Draw the pictures of the page, and that of the README, as SVG into docs/assets; return those that have a record.

    Raises:
        ImportError: matplotlib is missing.
    """
    from examples.state_tracking import plots

    records = _records(docs)
    demos = [r for name, data in records.items() if name.startswith("demo-S3-") for r in data["results"]]
    modes = records.get("cpu-modes")
    written = []
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        if demos:
            plots.accuracy_by_length(demos, here / "state_tracking", chance=report.chance("S3"))
        if modes:
            plots.frontier(modes["frontier"], here / "state_tracking_frontier")
            plots.budgets(modes["budgets"], here / "state_tracking_budgets")
        if "collapse" in records:
            plots.collapse(records["collapse"]["results"], here / "state_tracking_collapse")
        if "schedule" in records:
            plots.schedules(records["schedule"]["table"], here / "state_tracking_schedule")
        _stories(docs / "records", here)
        (docs / "assets").mkdir(exist_ok=True)
        for path in sorted(here.glob("*.svg")):
            written.append(docs / "assets" / path.name)
            shutil.copyfile(path, written[-1])
    return written


def _records(docs: Path) -> dict[str, Data]:
    return {path.stem: read_json(path) for path in sorted((docs / RECORDS).glob("*.json"))}


def _missing(command: str) -> str:
    return f"No record yet: `python -m examples.state_tracking {command}`."


def _story(name: str, path: Path) -> str:
    return STORIES[name](read_json(path)) if path.exists() else f"No record yet: `python -m examples.{name}`."


def _stories(records: Path, folder: Path) -> None:
    """Draw the first seed of the examples of one run a seed."""
    if (records / "graph.json").exists():
        first = read_json(records / "graph.json")["runs"][0]
        for path in graph.draw(first["runs"], first["settings"]["longest"], folder):
            path.rename(folder / f"graph{path.suffix}")
    if (records / "vision.json").exists():
        for path in vision.draw(read_json(records / "vision.json")["runs"][0]["runs"], folder):
            path.rename(folder / f"vision{path.suffix}")


def _demos(group: str, demos: Sequence[Data]) -> str:
    results = sorted((r for data in demos for r in data["results"]), key=lambda r: (r["label"], r["seed"]))
    implicit = [r for r in results if r["label"].startswith("implicit")]
    ordered = [*implicit, *(r for r in results if r not in implicit)]
    gaps = [report.gap(data["results"], 64) for data in demos]
    seconds = [data["wall_seconds"] for data in demos]
    return "\n\n".join(
        [
            report.accuracy_table(ordered, markdown=True),
            f"Guessing: {report.chance(group):.3f}. At L=64 the implicit layer is ahead of the best explicit model by "
            f"{_span(gaps, '.2f')}. One seed with its baselines took {_span(seconds, '.0f')} s. {_machine(ordered[0])}",
        ]
    )


def _span(values: list[float], form: str) -> str:
    ends = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return " to ".join(ends)


def _part(part: str, data: Data) -> str:
    if part == "modes":
        return report.mode_table(data["table"], markdown=True)
    results = data["results"]
    guess = f"Guessing: {report.chance(results[0]['problem']):.3f}. {_machine(results[0])}"
    return f"{report.spread_table(results, markdown=True)}\n\n{guess}"


def _automata(data: Data) -> str:
    lines = [f"- {automata_table.contract(c['name']).line()}." for c in data["contracts"]]
    spent = sum(r["training"]["seconds"]["cpu"] for r in data["results"] if r["label"] == OURS and "training" in r)
    count = sum(r["label"] == OURS for r in data["results"])
    ours = f"The {count} trainings of the implicit layer took {spent / 60:.1f} CPU minutes in all."
    table = automata_table.describe(data, markdown=True)
    return "\n\n".join(["\n".join(lines), table, f"{ours} {_machine(data['results'][0])}"])


def _traces(data: Data) -> str:
    rates = ", ".join(f"{row['label']} at {row['lr']:g}: {100 * (row['mean'] or 0):.1f}" for row in data["search"])
    line = f"{automata_table.contract(sessions.TASK).line()}."
    table = sessions.describe(data, markdown=True)
    return f"{line}\n\n{table}\n\nOn validation, in a third of the time: {rates}. {_machine(data['results'][0])}"


def _collapse(data: Data) -> str:
    return f"```text\n{describe_collapse(data)}\n```\n\n{_machine(data['results'][0])}"


def _schedule(data: Data) -> str:
    table = report.schedule_table(data["table"], markdown=True)
    return f"{table}\n\n{_machine(data)}"


def _groups(data: Data) -> str:
    contract = data["contract"]
    what = f"{contract['about']}; {contract['fidelity']}, after {contract['source']}: {contract['differs']}."
    table = report.generated_table(data["results"], markdown=True)
    return f"{what}\n\n{table}\n\n{_machine(data['results'][0])}"


def _full(group: str, data: Data) -> str:
    rates = ", ".join(f"{label} {rate:g}" for label, rate in data["rates"].items())
    parts = [f"### {group}, every model", f"Rates by search: {rates}. Accuracy over all of {TRAINED} tokens, one seed:"]
    parts.append(report.rate_table(data["search"], length=TRAINED, markdown=True))
    for kind in ("equal_steps", "equal_time"):
        for metric, words in (("last", "last token"), ("last10", "last ten tokens")):
            parts.append(f"{group}, {kind.replace('_', ' ')}, {words}:")
            parts.append(report.spread_table(data[kind], metric=metric, markdown=True))
    return "\n\n".join([*parts, _machine(data["equal_steps"][0])])


def _machine(result: Data) -> str:
    where = result["environment"]
    torch = where.get("packages", where)["torch"]  # older records hold it beside the others
    names = f"deqlm {where['deqlm']}, torch {torch}, Python {where['python']}, {where['platform']}"
    return f"{names}, {where['device']}, one thread per process."
