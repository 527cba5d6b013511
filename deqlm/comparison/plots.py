"""Plots of a comparison: residual against evaluations and time, and performance profiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deqlm.comparison.recorder import Trace
from deqlm.comparison.result import Comparison, Entry, ProblemResult
from deqlm.reporting.style import Look, figure, looks, steady, write

__all__ = ["draw_all", "draw_profile", "draw_residuals", "profile"]

PANEL = (3.3, 2.35)
MOST_COLUMNS = 4


def draw_all(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every plot as SVG and PNG into ``folder``; return the paths.

    Raises:
        ImportError: matplotlib is missing.
    """
    written = []
    with steady():
        for axis, name in (("evaluations", "residual_evaluations"), ("seconds", "residual_time")):
            written += write(draw_residuals(comparison, axis), folder, name)
        written += write(draw_profile(comparison), folder, "profile")
    return written


def draw_residuals(comparison: Comparison, axis: str) -> Any:
    """Return a figure with a panel per problem: the worst row's best residual so far against ``axis``.

    A dot ends the line of a solver that solved every row, a cross that of one that did not; solvers that raised or are
    not installed are named in the panel.

    Args:
        comparison: what to draw.
        axis: "evaluations" or "seconds".
    """
    problems = [problem for problem in comparison.problems if problem.entries]
    columns = min(MOST_COLUMNS, max(2, len(problems)))
    lines = math.ceil(len(problems) / columns)
    names = comparison.solvers
    per_line = max(1, columns * 3 // 2 - 1)
    legend = 0.2 * math.ceil((len(names) + 2) / per_line) + 0.25
    height = PANEL[1] * lines + 0.2 + legend
    made = figure(PANEL[0] * columns, height)
    axes = made.subplots(lines, columns, squeeze=False).flatten()
    chosen = looks(names)
    for i, (panel, problem) in enumerate(zip(axes, problems, strict=False)):
        _panel(panel, problem, axis, chosen)
        if i + columns >= len(problems):
            panel.set_xlabel("evaluations of f" if axis == "evaluations" else "time in ms")
    for panel in axes[len(problems) :]:
        panel.set_axis_off()
    made.supylabel("relative residual of the worst row, best so far", fontsize=9, x=0.006)
    _legend(made, chosen, per_line)
    made.tight_layout(rect=(0.012, legend / height, 1, 1), h_pad=1.2, w_pad=0.8)
    return made


def draw_profile(comparison: Comparison) -> Any:
    """Return a figure with the performance profiles of evaluations and of time.

    Reference: E. D. Dolan, J. J. More (2002), Benchmarking optimization software with performance profiles, Math.
    Program. 91, equation (2.1).
    """
    made = figure(10.5, 4.0)
    axes = made.subplots(1, 2, sharey=True)
    names = comparison.solvers
    chosen = looks(names)
    measures: tuple[tuple[str, Callable[[Entry], float | None]], ...] = (
        ("evaluations", lambda entry: entry.evaluations),
        ("time", lambda entry: entry.seconds),
    )
    curves = [profile(comparison, cost) for _, cost in measures]
    for panel, (what, _), curve in zip(axes, measures, curves, strict=True):
        count = max(1, len([p for p in comparison.problems if p.entries]))
        end = 1.15 * max([2.0, *(ratio for ratios in curve.values() for ratio in ratios)])
        for name in names:
            ratios = curve[name]
            x = [1.0, *ratios, end]
            y = [0.0, *((i + 1) / count for i in range(len(ratios))), len(ratios) / count]
            panel.step(x, y, where="post", clip_on=False, **chosen[name]._asdict())
        panel.set_xscale("log")
        panel.set_xlim(1, end)
        panel.set_ylim(0, 1.02)
        panel.set_xlabel(f"{what}, as a multiple of the best solver's")
    axes[0].set_ylabel("share of problems solved")
    handles = [_handle(look, f"{name} ({len(curves[0][name])})") for name, look in chosen.items()]
    made.legend(handles=handles, loc="center right", fontsize=8, title="problems solved in all", title_fontsize=8)
    made.tight_layout(rect=(0, 0, 0.775, 1))
    return made


def profile(comparison: Comparison, cost: Callable[[Entry], float | None]) -> dict[str, list[float]]:
    """Return per solver the sorted ratios of its cost to the least cost, over the problems that it solves."""
    ratios: dict[str, list[float]] = {name: [] for name in comparison.solvers}
    for problem in comparison.problems:
        costs = {e.solver: cost(e) for e in problem.entries if e.outcome == "solved"}
        known = {name: value for name, value in costs.items() if value}
        if known:
            least = min(known.values())
            for name, value in known.items():
                ratios[name].append(value / least)
    return {name: sorted(values) for name, values in ratios.items()}


def _panel(panel: Any, problem: ProblemResult, axis: str, chosen: dict[str, Look]) -> None:
    floor = problem.tol / 100
    top = 1.0
    for entry in problem.entries:
        trace = entry.trace
        if trace is None or not trace.evaluations:
            continue
        x, y = _points(trace, axis, floor)
        if not x:
            continue
        top = max(top, y[0])
        look = chosen[entry.solver]
        panel.step(x, y, where="post", alpha=0.9, **look._asdict())
        solved = entry.outcome == "solved"
        panel.plot(
            x[-1], y[-1], marker="o" if solved else "X", color=look.color, markersize=3.5 if solved else 7,
            markeredgecolor="white", markeredgewidth=0.0 if solved else 0.7, linestyle="none", zorder=3,
        )  # fmt: skip
    panel.axhline(problem.tol, color="#777777", linewidth=0.8, zorder=0.5)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(floor * 0.7, min(top, 1e4) * 3)
    panel.set_title(problem.label, loc="left")
    absent = [f"{e.solver} {e.outcome}" for e in problem.entries if not e.ran]
    if absent:
        shown = absent if len(absent) <= 3 else [*absent[:3], f"and {len(absent) - 3} more"]
        panel.text(0.03, 0.05, "\n".join(shown), transform=panel.transAxes, fontsize=6.5, color="#555555", va="bottom")


def _points(trace: Trace, axis: str, floor: float) -> tuple[list[float], list[float]]:
    """Return what can be drawn on logarithmic axes: finite residuals, not below ``floor``, at positive abscissas."""
    scale = 1.0 if axis == "evaluations" else 1e3
    x = [max(value * scale, 1e-6) for value in getattr(trace, axis)]
    pairs = [(a, max(r, floor)) for a, r in zip(x, trace.residual, strict=True) if math.isfinite(r)]
    return [a for a, _ in pairs], [r for _, r in pairs]


def _legend(made: Any, chosen: dict[str, Look], columns: int) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color="#777777", marker="o", markersize=3.5, linestyle="none", label="ends: all rows solved"),
        Line2D([], [], color="#777777", marker="X", markersize=7, linestyle="none", label="ends: a row unsolved"),
    ]
    handles = [*(_handle(look, name) for name, look in chosen.items()), *marks]
    made.legend(handles=handles, loc="lower center", ncols=columns, fontsize=8, handlelength=2.6, columnspacing=1.6)


def _handle(look: Look, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **look._asdict())
