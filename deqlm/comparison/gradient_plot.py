"""Plot of a comparison of gradients: error against the time of forward and backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deqlm.comparison.gradients import GradientComparison, GradientProblem
from deqlm.reporting.style import PALETTE, figure, steady, write

__all__ = ["draw_costs", "draw_gradients"]

MARKERS = "osD^vP*<>"


def draw_gradients(comparison: GradientComparison, folder: Path) -> list[Path]:
    """Write ``gradients.svg`` and ``gradients.png``; return the paths.

    Raises:
        ImportError: matplotlib is missing.
    """
    with steady():
        return write(draw_costs(comparison), folder, "gradients")


def draw_costs(comparison: GradientComparison) -> Any:
    """Return a figure with a panel per problem and a point per method: error against what a training step pays."""
    problems = [problem for problem in comparison.problems if problem.entries]
    names = list(dict.fromkeys(entry.gradient for problem in problems for entry in problem.entries))
    made = figure(2.5 * max(2, len(problems)) + 0.4, 3.2)
    axes = made.subplots(1, max(2, len(problems)), sharey=True)
    for panel, problem in zip(axes, problems, strict=False):
        _panel(panel, problem, names)
    for panel in axes[len(problems) :]:
        panel.set_axis_off()
    axes[0].set_ylabel("relative error of the gradient")
    handles = [_point(i, name) for i, name in enumerate(names)]
    made.legend(handles=handles, loc="lower center", ncols=min(6, len(names)), fontsize=8)
    made.tight_layout(rect=(0, 0.1, 1, 1))
    return made


def _panel(panel: Any, problem: GradientProblem, names: list[str]) -> None:
    panel.set_yscale("log")
    for entry in problem.entries:
        if entry.total is not None and entry.error:
            panel.add_line(_point(names.index(entry.gradient), "", entry.total * 1e3, entry.error))
    panel.relim()
    panel.autoscale_view()
    panel.margins(0.15)
    panel.set_xlim(left=0)
    panel.set_xlabel("forward + backward, ms")
    panel.set_title(problem.label, loc="left")
    absent = [f"{e.gradient} {e.outcome}" for e in problem.entries if e.cosine is None]
    panel.text(0.03, 0.03, "\n".join(absent), transform=panel.transAxes, fontsize=6.5, color="#555555", va="bottom")


def _point(index: int, label: str, x: float | None = None, y: float | None = None) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [] if x is None else [x],
        [] if y is None else [y],
        label=label,
        color=PALETTE[index % len(PALETTE)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=6,
        linestyle="none",
    )
