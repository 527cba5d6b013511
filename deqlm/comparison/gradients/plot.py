"""Plot of a comparison of gradients: error against the time of forward and backward."""

from __future__ import annotations

import statistics
from typing import Any

from deqlm.reporting.style import PALETTE, key, legend_below, panels, say_absent

__all__ = ["draw_costs"]

MARKERS = "osD^vP*<>"


def draw_costs(record: dict[str, Any]) -> Any:
    """Return a figure with a panel per problem and a point per method: error against what a training step pays.

    Args:
        record: as `GradientComparison.to_dict` returns it.
    """
    problems = [problem for problem in record["problems"] if problem["entries"]]
    names = list(dict.fromkeys(entry["gradient"] for problem in problems for entry in problem["entries"]))
    columns = max(2, len(problems))
    made, axes = panels(len(problems), columns, (2.5 + 0.4 / columns, 2.9), below=0.3, sharey=True)
    for panel, problem in zip(axes, problems, strict=False):
        _panel(panel, problem, names)
    axes[0].set_ylabel("relative error of the gradient")
    legend_below(made, [key(name, **_point(i)) for i, name in enumerate(names)], 6, height=0.32)
    return made


def _panel(panel: Any, problem: dict[str, Any], names: list[str]) -> None:
    panel.set_yscale("log")
    for entry in problem["entries"]:
        if entry["forward"] and entry["error"]:
            both = statistics.median(f + b for f, b in zip(entry["forward"], entry["backward"], strict=True))
            panel.plot(both * 1e3, entry["error"], **_point(names.index(entry["gradient"])))
    panel.margins(0.15)
    panel.set_xlim(left=0)
    panel.set_xlabel("forward + backward, ms")
    panel.set_title(problem["label"], loc="left")
    say_absent(panel, [f"{e['gradient']} {e['outcome']}" for e in problem["entries"] if e["outcome"] != "ran"])


def _point(index: int) -> dict[str, Any]:
    color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
    return {"color": color, "marker": marker, "markersize": 6, "linestyle": "none"}
