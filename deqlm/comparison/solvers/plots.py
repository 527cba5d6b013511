"""Plots of a comparison: residual against evaluations and time, and performance profiles."""

from __future__ import annotations

import math
from typing import Any

from deqlm.comparison.solvers.foremost import GREY, looks_of
from deqlm.reporting.style import Look, figure, key, legend_below, panels, say_absent

__all__ = ["draw_profile", "draw_residuals", "profile"]

ABSENT = ("raised", "not installed")
PANEL = (3.3, 2.35)
MOST_COLUMNS = 4


def draw_residuals(record: dict[str, Any], axis: str) -> Any:
    """Return a figure with a panel per problem: the worst row's best residual so far against ``axis``.

    A dot ends the line of a solver that solved every row, a cross that of one that did not; solvers that raised or are
    not installed are named in the panel. Of more than eight solvers the foremost have colours and the others are grey.

    Args:
        record: as `Comparison.to_dict` returns it.
        axis: "evaluations" or "seconds".
    """
    problems = [problem for problem in record["problems"] if problem["entries"]]
    columns = min(MOST_COLUMNS, max(2, len(problems)))
    chosen = looks_of(profile(record, axis))
    named = {name: look for name, look in chosen.items() if look.color != GREY}
    per_line = max(1, columns * 3 // 2 - 1)
    legend = 0.2 * math.ceil((len(named) + 3) / per_line) + 0.25
    made, axes = panels(len(problems), columns, PANEL, below=legend + 0.2)
    for i, (panel, problem) in enumerate(zip(axes, problems, strict=False)):
        _panel(panel, problem, axis, chosen)
        if i + columns >= len(problems):
            panel.set_xlabel("evaluations of f" if axis == "evaluations" else "time in ms")
    made.supylabel("relative residual of the worst row, best so far", fontsize=9, x=0.006)
    grey = {"color": "#777777", "linestyle": "none"}
    marks = [key("ends: all rows solved", marker="o", markersize=3.5, **grey)]
    marks += [key("ends: a row unsolved", marker="X", markersize=7, **grey)]
    if len(named) < len(chosen):
        marks.insert(0, key(f"{len(chosen) - len(named)} others", color=GREY, linewidth=0.9))
    keys = [*(key(name, **look._asdict()) for name, look in named.items()), *marks]
    legend_below(made, keys, per_line, height=legend, left=0.012, handlelength=2.6, columnspacing=1.6)
    return made


def draw_profile(record: dict[str, Any]) -> Any:
    """Return a figure with the performance profiles of evaluations and of time.

    Args:
        record: as `Comparison.to_dict` returns it.

    Reference: E. D. Dolan, J. J. More (2002), Benchmarking optimization software with performance profiles, Math.
    Program. 91, equation (2.1).
    """
    made = figure(10.5, 4.0)
    axes = made.subplots(1, 2, sharey=True)
    curves = [profile(record, cost) for cost in ("evaluations", "seconds")]
    chosen = looks_of(curves[0])
    count = max(1, len([p for p in record["problems"] if p["entries"]]))
    for panel, what, curve in zip(axes, ("evaluations", "time"), curves, strict=True):
        end = 1.15 * max([2.0, *(ratio for ratios in curve.values() for ratio in ratios)])
        for name, look in chosen.items():
            ratios = curve[name]
            x = [1.0, *ratios, end]
            y = [0.0, *((i + 1) / count for i in range(len(ratios))), len(ratios) / count]
            panel.step(x, y, where="post", clip_on=False, **look._asdict())
        panel.set_xscale("log")
        panel.set_xlim(1, end)
        panel.set_ylim(0, 1.02)
        panel.set_xlabel(f"{what}, as a multiple of the best solver's")
    axes[0].set_ylabel("share of problems solved")
    handles = [key(f"{name} ({len(curves[0][name])})", **chosen[name]._asdict()) for name in curves[0]]
    made.legend(handles=handles, loc="center right", fontsize=8, title="problems solved in all", title_fontsize=8)
    made.tight_layout(rect=(0, 0, 0.775, 1))
    return made


def profile(record: dict[str, Any], cost: str) -> dict[str, list[float]]:
    """Return per solver the sorted ratios of its cost to the least cost, over the problems that it solves.

    Args:
        record: as `Comparison.to_dict` returns it.
        cost: which number of an entry: "evaluations" or "seconds".
    """
    ratios: dict[str, list[float]] = {name: [] for name in _names(record)}
    for problem in record["problems"]:
        costs = {e["solver"]: e[cost] for e in problem["entries"] if e["outcome"] == "solved"}
        known = {name: value for name, value in costs.items() if value}
        if known:
            least = min(known.values())
            for name, value in known.items():
                ratios[name].append(value / least)
    return {name: sorted(values) for name, values in ratios.items()}


def _names(record: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(entry["solver"] for problem in record["problems"] for entry in problem["entries"]))


def _panel(panel: Any, problem: dict[str, Any], axis: str, chosen: dict[str, Look]) -> None:
    floor = problem["tol"] / 100
    top = 1.0
    order = list(chosen)
    for entry in sorted(problem["entries"], key=lambda entry: order.index(entry["solver"])):
        x, y = _points(entry["trace"], axis, floor)
        if not x:
            continue
        top = max(top, y[0])
        look = chosen[entry["solver"]]
        panel.step(x, y, where="post", alpha=0.9, **look._asdict())
        solved, grey = entry["outcome"] == "solved", look.color == GREY
        size = 3.5 if solved else 5 if grey else 7
        panel.plot(
            x[-1], y[-1], marker="o" if solved else "X", color=look.color, markersize=size, markeredgecolor="white",
            markeredgewidth=0.0 if solved else 0.7, linestyle="none", zorder=2 if grey else 3,
        )  # fmt: skip
    panel.axhline(problem["tol"], color="#777777", linewidth=0.8, zorder=0.5)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(floor * 0.7, min(top, 1e4) * 3)
    panel.set_title(problem["label"], loc="left")
    say_absent(panel, [f"{e['solver']} {e['outcome']}" for e in problem["entries"] if e["outcome"] in ABSENT])


def _points(trace: dict[str, Any] | None, axis: str, floor: float) -> tuple[list[float], list[float]]:
    """Return what can be drawn on logarithmic axes: finite residuals, not below ``floor``, at positive abscissas."""
    if trace is None:
        return [], []
    scale = 1.0 if axis == "evaluations" else 1e3
    x = [max(value * scale, 1e-6) for value in trace[axis]]
    pairs = [(a, max(r, floor)) for a, r in zip(x, trace["residual"], strict=True) if r is not None]
    return [a for a, _ in pairs], [r for _, r in pairs]
