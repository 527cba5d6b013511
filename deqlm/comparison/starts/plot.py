"""Plot of a comparison of starts: evaluations of each solve along a sequence."""

from __future__ import annotations

from typing import Any

from deqlm.reporting.style import PALETTE, key, legend_below, panels, say_absent

__all__ = ["draw_sequences"]


def draw_sequences(record: dict[str, Any]) -> Any:
    """Return a figure, a panel per sequence: per solver a dashed line from zero and a solid one from the last point.

    Args:
        record: as `StartComparison.to_dict` returns it.
    """
    problems = [problem for problem in record["problems"] if problem["entries"]]
    names = list(dict.fromkeys(entry["solver"] for problem in problems for entry in problem["entries"]))
    columns = min(3, max(2, len(problems)))
    made, axes = panels(len(problems), columns, (3.3, 2.3), below=0.6)
    for panel, problem in zip(axes, problems, strict=False):
        _panel(panel, problem, names)
    for panel in axes[::columns]:
        panel.set_ylabel("evaluations per row")
    keys = [key(name, color=_colour(names, name), linestyle="-") for name in names]
    keys += [key("from zero", color="#555555", linestyle="--")]
    keys += [key("from the one before", color="#555555", linestyle="-")]
    legend_below(made, keys, 6, height=0.3)
    return made


def _panel(panel: Any, problem: dict[str, Any], names: list[str]) -> None:
    for entry in problem["entries"]:
        solves = range(2, len(entry["zero"]) + 2)
        panel.plot(solves, entry["zero"], "--", color=_colour(names, entry["solver"]))
        panel.plot(solves, entry["previous"], "-", color=_colour(names, entry["solver"]))
    panel.set_ylim(bottom=0)
    panel.set_xlabel("solve")
    panel.set_title(problem["label"], loc="left")
    say_absent(panel, [f"{e['solver']} {e['outcome']}" for e in problem["entries"] if e["outcome"] != "ran"])


def _colour(names: list[str], name: str) -> str:
    return PALETTE[names.index(name) % len(PALETTE)]
