"""What the reader sees: lines of the log, the final table, the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLAIN_COLORS = ["#9ecae1", "#4292c6", "#08519c", "#6baed6", "#2171b5"]


def describe(point: dict[str, float]) -> str:
    """Return one line of the log."""
    text = f"  step {point['step']:4d}  train {point['train']:.3f}  validation {point['validation']:.3f}"
    if "evaluations" in point:
        text += f"  | evaluations {point['evaluations']:.1f}, adjoint {point['adjoint']:.1f}"
        text += f", worst residual {point['residual']:.1e}"
        text += f", not converged {point['failed']} / {point['adjoint_failed']}"
    return text


def result_table(wrapped: dict[str, Any], plain: list[dict[str, Any]]) -> str:
    """Return both validation losses of every run, and in words which model did better."""
    heads = ("model", "rate", "loss at equal steps", "loss at equal time", "steps at equal time")
    lines = ["{:8} {:>6} {:>20} {:>19} {:>20}".format(*heads)]
    for run in [wrapped, *plain]:
        losses = f"{run['at_equal_steps']:20.3f} {run['at_equal_time']:19.3f}"
        lines.append(f"{run['model']:8} {run['lr']:6g} {losses} {run['steps']:20d}")
    lines.append("")
    for what, key in (("equal steps", "at_equal_steps"), ("equal time", "at_equal_time")):
        gain = min(run[key] for run in plain) - wrapped[key]
        verdict = "better than the best plain run" if gain > 0 else "worse than the best plain run"
        lines.append(f"at {what} the wrapped layer is {verdict} by {abs(gain):.3f} nats per byte")
    return "\n".join(lines)


def save(folder: Path, record: dict[str, Any]) -> list[str]:
    """Write result.json and, where matplotlib is installed, curves.png and curves.svg; return the names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(record, indent=2) + "\n")
    return ["result.json", *draw_curves(record["wrapped"], record["plain"], folder)]


def draw_curves(wrapped: dict[str, Any], plain: list[dict[str, Any]], folder: Path) -> list[str]:
    """Draw validation loss against steps and against CPU time; return the files, none without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    looks = [("#d94801", "o"), *((PLAIN_COLORS[i % len(PLAIN_COLORS)], ".") for i in range(len(plain)))]
    for run, (color, marker) in zip([wrapped, *plain], looks, strict=True):
        label = f"{run['model']}, learning rate {run['lr']:g}"
        loss = [point["validation"] for point in run["curve"]]
        for axis, key in zip(axes, ("step", "cpu_seconds"), strict=True):
            axis.plot([point[key] for point in run["curve"]], loss, color=color, marker=marker, label=label)
    axes[0].set(xlim=(0, 1.05 * wrapped["steps"]), xlabel="steps", ylabel="validation loss, nats per byte")
    axes[1].set(xlabel="CPU seconds of training")
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    names = ["curves.png", "curves.svg"]
    for name in names:
        figure.savefig(folder / name, dpi=150)
    return names
