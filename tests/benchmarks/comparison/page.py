"""The page "How it compares": what stands between its markers is made from a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.comparison.contenders import DEFAULT, PEERS
from benchmarks.comparison.quality import SOLVER_NAMES
from benchmarks.comparison.verdicts import best_peer, default_of, floor_share, jax_best, losses, ratio, verdicts
from deqlm.reporting.page import blank, drawn, redraw, table
from deqlm.reporting.table import amount

__all__ = ["SECTIONS", "blocks", "check_page", "write_page"]

SECTIONS = {
    "machine": "Where it was measured",
    "verdicts": "What was aimed at",
    "losses": "Where we lose",
    "speed": "Time to an equal true residual",
    "solvers": "Our own solvers",
    "overhead": "Cost of an evaluation beyond f",
    "rows": "One bad row among 32",
    "adjoint": "Backward",
    "quality": "Fifty problems",
    "growth": "Memory",
    "jax": "Against jitted JAX",
}
"""Name of a block -> heading of its section, in order."""

TITLE = "How it compares"
MISSING = "*Not measured in this record.*"
FIGURES = {"speed": "speed.svg", "quality": "quality.svg", "growth": "growth.svg"}


def write_page(path: Path, record: dict[str, Any]) -> Path:
    """Draw every block of the page anew from ``record``; the text around the markers stays.

    A page that is not there yet is made, with a heading and a block per section.

    Raises:
        ValueError: the page lacks a marker.

    Examples:
        >>> page = write_page(Path("page.md"), {"environment": {"deqlm": "1"}, "overhead": []})
        >>> "begin overhead" in page.read_text()
        True
    """
    return redraw(path, blocks(record), new=blank(TITLE, SECTIONS))


def check_page(path: Path, record: dict[str, Any]) -> None:
    """Find out whether `write_page` can write, and write nothing.

    Raises:
        ValueError: the page lacks a marker.
    """
    drawn(path, blocks(record), new=blank(TITLE, SECTIONS))


def blocks(record: dict[str, Any]) -> dict[str, str]:
    """Return the markdown of every block, by name."""
    makers = {
        "machine": _machine, "verdicts": _verdicts, "losses": _losses, "speed": _speed, "solvers": _solvers,
        "overhead": _overhead, "rows": _rows, "adjoint": _adjoint, "quality": _quality, "growth": _growth, "jax": _jax,
    }  # fmt: skip
    return {name: makers[name](record) for name in SECTIONS}


def _machine(record: dict[str, Any]) -> str:
    e = record["environment"]
    packages = {**e.get("packages", {}), **(record.get("jax") or {}).get("packages", {})}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    absent = record.get("missing") or {}
    lines = [
        f"{e.get('cpu')}, {e.get('cores')} cores, one thread, {e.get('platform')}, Python {e.get('python')}; "
        f"deqlm {e.get('deqlm')}, commit `{str(e.get('commit'))[:12]}`; {versions}.",
        *(f"Not compared: {name} ({why})." for name, why in absent.items()),
        *_older(record),
    ]
    return "\n\n".join(lines)


def _older(record: dict[str, Any]) -> list[str]:
    """Return a line that names the parts measured at another commit than the newest."""
    now = record["environment"].get("commit")
    measured = record.get("measured") or {}
    older = [f"{part} (`{str(m['commit'])[:12]}`)" for part, m in measured.items() if m["commit"] != now]
    return [f"Measured earlier: {', '.join(older)}."] if older else []


def _verdicts(record: dict[str, Any]) -> str:
    rows = [[v.what, v.asked, v.measured, "yes" if v.met else "**no**"] for v in verdicts(record)]
    return table(["what", "asked", "measured", "met"], rows, numbers=False) if rows else MISSING


def _losses(record: dict[str, Any]) -> str:
    said = losses(record)
    return "\n".join(f"- {line}" for line in said) if said else "Nowhere in this record."


def _speed(record: dict[str, Any]) -> str:
    maps = [*(record.get("speed") or []), *(record.get("double") or [])]
    if not maps:
        return MISSING
    rows = []
    for one in maps:
        us, peer = default_of(one["entries"]), best_peer(one["entries"])
        faster, share = ratio(one), floor_share(one, us)
        rows.append(
            [
                one["map"] + (", float64" if one["dtype"] == "float64" else ""),
                f"{1e6 * one['f_seconds']:.3g} us",
                _ms(us),
                str(us["evaluations"]),
                _picked(us),
                "-" if share is None else f"{share:.2f}",
                "none solves it" if peer is None else f"{_ms(peer)} ({peer['solver'].partition('.')[2]})",
                "-" if faster is None else f"{faster:.2g}x",
                amount(us["residual"]),
            ]
        )
    head = [
        "map",
        "f",
        "deqlm",
        "evaluations",
        "method it took",
        "share of f",
        "best torchdeq",
        "ratio",
        "true residual",
    ]
    return _figure(record, "speed", "Time to the same true residual, map by map") + table(head, rows)


def _solvers(record: dict[str, Any]) -> str:
    maps = record.get("speed") or []
    if not maps:
        return MISSING
    names = [e["solver"] for e in maps[0]["entries"] if e["solver"] != DEFAULT and e["solver"] not in PEERS]
    shown = [DEFAULT, *names, *PEERS]
    rows = []
    for one in maps:
        held = {e["solver"]: e for e in one["entries"]}
        rows.append([one["map"], *(_cell(held.get(name)) for name in shown)])
    return table(["ms (evaluations)", *shown], rows)


def _overhead(record: dict[str, Any]) -> str:
    rows = [
        [one["solver"], *(_cost(one[name], one.get(f"{name[:-3]}_error_us"), n) for name, n in _COSTS.items())]
        for one in record.get("overhead") or []
    ]
    return table(["solver", "per evaluation", "per solve"], rows) if rows else MISSING


_COSTS = {"per_evaluation_us": 1, "per_solve_us": 0}
"""Fields of a record with the digits behind the point."""


def _cost(microseconds: float, error: float | None, digits: int) -> str:
    """Return a cost with its standard error; one below twice that, or below zero, says no more than that."""
    if microseconds <= 2 * (error or 0.0):
        return "not resolved" if error is None else f"not resolved (+- {error:.{digits}f} us)"
    return f"{microseconds:.{digits}f} us" + ("" if error is None else f" +- {error:.{digits}f}")


def _rows(record: dict[str, Any]) -> str:
    rows = []
    for one in record.get("rows") or []:
        peer = best_peer(one["peers"])
        rows.append(
            [
                one["row"],
                *(f"{1e3 * one[part]:.2f} ms" for part in ("others", "alone", "together")),
                "none solves it" if peer is None else f"{_ms(peer)} ({peer['solver'].partition('.')[2]})",
            ]
        )
    head = ["the bad row is", "31 good rows", "the bad row alone", "all 32", "best torchdeq, all 32"]
    return table(head, rows) if rows else MISSING


def _adjoint(record: dict[str, Any]) -> str:
    rows = []
    for one in record.get("adjoint") or []:
        for e in one["entries"]:
            if e["message"]:
                rows.append([one["map"], e["gradient"], "-", "-", "-", e["message"]])
                continue
            cells = [f"{e['backward_ms']:.3g} ms", amount(e["residual"]), amount(e["error"])]
            rows.append([one["map"], e["gradient"], *cells, "yes" if e["reaches"] else f"no ({one['tol']:g} asked)"])
    head = ["map", "gradient", "backward", "true residual", "error", "reaches the tolerance"]
    return table(head, rows) if rows else MISSING


def _quality(record: dict[str, Any]) -> str:
    quality = record.get("quality")
    if not quality or not quality["entries"]:
        return MISSING
    dtypes = list(dict.fromkeys(e["dtype"] for e in quality["entries"]))
    rows = []
    for name in (n for n in SOLVER_NAMES if n in quality["solvers"]):
        cells = []
        failed: dict[str, list[str]] = {}
        for dtype in dtypes:
            mine = [e for e in quality["entries"] if e["solver"] == name and e["dtype"] == dtype]
            cells.append(f"{sum(e['solved'] for e in mine)} of {len(mine)}")
            for e in mine:
                if not e["solved"]:
                    failed.setdefault(e["problem"], []).append(dtype)
        named = [problem + ("" if len(where) == len(dtypes) else f" ({where[0]})") for problem, where in failed.items()]
        shown = ", ".join(named[:6]) + (f" and {len(named) - 6} more" if len(named) > 6 else "")
        label = f"{name} (the default)" if name == quality["default"] else name
        rows.append([label, *cells, shown or "-"])
    text = table(["solver", *dtypes, "not solved"], rows)
    absent = [name for name in quality["absent"] if name in SOLVER_NAMES]
    tail = f"\n\nNot installed here: {', '.join(absent)}." if absent else ""
    return _figure(record, "quality", "Problems solved, per solver") + text + tail


def _growth(record: dict[str, Any]) -> str:
    found = record.get("growth") or []
    if not found:
        return MISSING
    head = ["states held at most", *(f"{n} evaluations" for n in found[0]["budgets"])]
    rows = [[one["solver"], *("-" if s is None else f"{s:.1f}" for s in one["states"])] for one in found]
    return _figure(record, "growth", "Peak memory against the evaluations allowed") + table(head, rows)


def _jax(record: dict[str, Any]) -> str:
    if not record.get("jax"):
        why = (record.get("missing") or {}).get("jax", "not asked for")
        return f"*Not measured in this record: {why}.*"
    rows = []
    for one in [*(record.get("speed") or []), *(record.get("double") or [])]:
        us, them = default_of(one["entries"]), jax_best(record, one["map"], one["dtype"])
        if them is None or not us["ms"]:
            continue
        rows.append(
            [
                f"{one['map']}, {one['dtype']}",
                _ms(us),
                f"{_ms(them)} ({them['solver']})",
                f"{them['ms'] / us['ms']:.2g}x",
                f"{1e6 * one['f_seconds']:.3g} us",
                f"{1e6 * them['f_seconds']:.3g} us",
                f"{us['ms'] / (1e3 * one['f_seconds']):.0f}",
                f"{them['ms'] / (1e3 * them['f_seconds']):.0f}",
            ]
        )
    head = ["map", "deqlm", "best of JAX", "ratio", "our f", "its f", "our time / our f", "its time / its f"]
    return table(head, rows)


def _figure(record: dict[str, Any], name: str, text: str) -> str:
    return f"![{text}](assets/{FIGURES[name]})\n\n" if name in record.get("figures", ()) else ""


def _ms(entry: dict[str, Any]) -> str:
    return "-" if not entry["ms"] else f"{entry['ms']:.3g} ms"


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["message"]:
        return "-"
    text = f"{entry['ms']:.3g} ({entry['evaluations']})" if entry["ms"] else "-"
    return text if entry["solved"] else "unsolved"


def _picked(entry: dict[str, Any]) -> str:
    if not entry["picked"]:
        return "-"
    return ", ".join(f"{name} {rows}" for name, rows in entry["picked"].items())
