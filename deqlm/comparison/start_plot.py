"""Plot of a comparison of starts: evaluations of each solve along a sequence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from deqlm.comparison.starts import StartComparison, StartProblem
from deqlm.reporting.style import PALETTE, figure, steady, write

__all__ = ["draw_sequences", "draw_starts"]


def draw_starts(comparison: StartComparison, folder: Path) -> list[Path]:
    """Write ``starts.svg`` and ``starts.png``; return the paths.

    Raises:
        ImportError: matplotlib is missing.
    """
    with steady():
        return write(draw_sequences(comparison), folder, "starts")


def draw_sequences(comparison: StartComparison) -> Any:
    """Return a figure, a panel per sequence: per solver a dashed line from zero and a solid one from the last point."""
    problems = [problem for problem in comparison.problems if problem.entries]
    names = list(dict.fromkeys(entry.solver for problem in problems for entry in problem.entries))
    columns = min(3, max(2, len(problems)))
    lines = math.ceil(len(problems) / columns)
    made = figure(3.3 * columns, 2.3 * lines + 0.6)
    axes = made.subplots(lines, columns, squeeze=False).flatten()
    for panel, problem in zip(axes, problems, strict=False):
        _panel(panel, problem, names)
    for panel in axes[len(problems) :]:
        panel.set_axis_off()
    for panel in axes[::columns]:
        panel.set_ylabel("evaluations per row")
    handles = [_line(names.index(name), name, "-") for name in names]
    handles += [_line(None, "from zero", "--"), _line(None, "from the one before", "-")]
    made.legend(handles=handles, loc="lower center", ncols=min(6, len(handles)), fontsize=8)
    made.tight_layout(rect=(0, 0.3 / (2.3 * lines + 0.6), 1, 1))
    return made


def _panel(panel: Any, problem: StartProblem, names: list[str]) -> None:
    for entry in problem.entries:
        solves = range(2, len(entry.zero) + 2)
        colour = PALETTE[names.index(entry.solver) % len(PALETTE)]
        panel.plot(solves, entry.zero, "--", color=colour)
        panel.plot(solves, entry.previous, "-", color=colour)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("solve")
    panel.set_title(problem.label, loc="left")
    absent = [f"{e.solver} {e.outcome}" for e in problem.entries if not e.ran]
    panel.text(0.03, 0.03, "\n".join(absent), transform=panel.transAxes, fontsize=6.5, color="#555555", va="bottom")


def _line(index: int | None, label: str, style: Literal["-", "--"]) -> Any:
    from matplotlib.lines import Line2D

    colour = "#555555" if index is None else PALETTE[index % len(PALETTE)]
    return Line2D([], [], label=label, color=colour, linestyle=style)
