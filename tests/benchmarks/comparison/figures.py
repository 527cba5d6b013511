"""Plots of the page, drawn from its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.comparison.contenders import PEERS
from benchmarks.comparison.verdicts import default_of, jax_best
from deqlm.reporting.style import PALETTE, figure, looks, steady

__all__ = ["draw_figures"]

ORANGE, GREEN, GREY = PALETTE[1], PALETTE[2], "#777777"


def draw_figures(record: dict[str, Any], folder: Path) -> list[str]:
    """Write an SVG per section that has numbers; return their names, as ``record["figures"]`` keeps them.

    Args:
        record: as `measure` returns it.
        folder: where ``speed.svg``, ``quality.svg`` and ``growth.svg`` go.

    Raises:
        ImportError: matplotlib is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with steady():
        for name, draw in (("speed", _speed), ("quality", _quality), ("growth", _growth)):
            if record.get(name):
                made = draw(record)
                made.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
                drawn.append(name)
    return drawn


def _speed(record: dict[str, Any]) -> Any:
    """A line per map: our default, torchdeq's three, the best of jax, and the floor, evaluations times f."""
    maps = record["speed"]
    made = figure(8.4, 0.33 * len(maps) + 1.3)
    panel = made.subplots()
    for y, one in enumerate(maps):
        us = default_of(one["entries"])
        if us["ms"]:
            floor = 1e3 * us["evaluations"] * one["f_seconds"]
            panel.plot([floor, us["ms"]], [y, y], color=PALETTE[0], linewidth=1.2, alpha=0.5, zorder=1)
            panel.plot(floor, y, marker="|", color=PALETTE[0], markersize=9, linestyle="none")
            panel.plot(us["ms"], y, marker=_mark(us), color=PALETTE[0], markersize=7, linestyle="none", zorder=3)
        for e in one["entries"]:
            if e["solver"] in PEERS and e["ms"]:
                style = {"color": ORANGE, "markersize": 5, "linestyle": "none", "fillstyle": "none"}
                panel.plot(e["ms"], y, marker="o" if e["solved"] else "x", **style)
        them = jax_best(record, one["map"], one["dtype"])
        if them:
            panel.plot(them["ms"], y, marker="^", color=GREEN, markersize=6, linestyle="none")
    panel.set_yticks(range(len(maps)), [one["map"] for one in maps])
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlabel("ms of CPU time, to an equal true residual")
    marks = (
        ("o", PALETTE[0], "full", "deqlm, default"),
        ("|", PALETTE[0], "full", "its evaluations times the cost of f"),
        ("o", ORANGE, "none", "torchdeq, three solvers"),
        ("x", ORANGE, "none", "the same, unsolved"),
        ("^", GREEN, "full", "best of jaxopt and optimistix"),
    )
    _legend(made, marks, 3)
    made.tight_layout(rect=(0, 0.55 / (0.33 * len(maps) + 1.3), 1, 1))
    return made


def _quality(record: dict[str, Any]) -> Any:
    """A bar per solver: share of the problems it was asked that it solves, in float32 and float64."""
    quality = record["quality"]
    names = quality["solvers"]
    dtypes = list(dict.fromkeys(e["dtype"] for e in quality["entries"]))
    made = figure(8.4, 0.32 * len(names) + 1.2)
    panel = made.subplots()
    height = 0.8 / max(1, len(dtypes))
    for i, dtype in enumerate(dtypes):
        for y, name in enumerate(names):
            mine = [e["solved"] for e in quality["entries"] if e["solver"] == name and e["dtype"] == dtype]
            if not mine:
                continue
            color = PALETTE[0] if "." not in name else ORANGE
            share = sum(mine) / len(mine)
            place = y + (i - (len(dtypes) - 1) / 2) * height
            panel.barh(place, share, height=0.9 * height, color=color, alpha=1.0 if i == 0 else 0.55)
            panel.text(share + 0.005, place, f"{sum(mine)} of {len(mine)}", va="center", fontsize=6.5)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.08)
    panel.set_xlabel(
        f"share of problems solved; upper bar {dtypes[0]}" + (", lower float64" if len(dtypes) > 1 else "")
    )
    made.tight_layout()
    return made


def _growth(record: dict[str, Any]) -> Any:
    """Peak memory against the evaluations allowed."""
    made = figure(6.4, 3.4)
    panel = made.subplots()
    chosen = looks([one["solver"] for one in record["growth"]])
    for one in record["growth"]:
        known = [(n, s) for n, s in zip(one["budgets"], one["states"], strict=True) if s is not None]
        if known:
            budgets, states = zip(*known, strict=True)
            look = chosen[one["solver"]]._asdict()
            panel.plot(budgets, states, marker="o", markersize=3, label=one["solver"], **look)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("evaluations allowed")
    panel.set_ylabel("states held at most")
    made.legend(loc="center right", fontsize=8)
    made.tight_layout(rect=(0, 0, 0.7, 1))
    return made


def _mark(entry: dict[str, Any]) -> str:
    return "o" if entry["solved"] else "X"


def _legend(made: Any, marks: tuple[tuple[str, str, str, str], ...], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=marker, color=color, fillstyle=fill, linestyle="none", label=label)  # type: ignore[arg-type]
        for marker, color, fill, label in marks
    ]
    made.legend(handles=handles, loc="lower center", ncols=columns, fontsize=8)
