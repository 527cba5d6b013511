"""Evaluations over a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqlm.diagnostics.monitoring.record import Call

__all__ = ["draw"]


def draw(calls: Sequence[Call], path: Path) -> Path:
    """Write the plot; see `Monitor.plot`."""
    try:
        from deqlm.reporting.style import PALETTE, figure, steady

        with steady():
            made = figure(7.5, 4.2)
            _draw(made, calls, PALETTE)
            made.savefig(path, dpi=150)
    except ImportError as error:
        raise ImportError('a plot needs matplotlib: pip install "deqlm[compare]"') from error
    return path


def _draw(made: Any, calls: Sequence[Call], palette: Sequence[str]) -> None:
    panel = made.subplots()
    names = list(dict.fromkeys((call.module, call.grad) for call in calls))
    for i, (name, grad) in enumerate(names):
        own = [call for call in calls if (call.module, call.grad) == (name, grad)]
        color, label = palette[i % len(palette)], name if grad else f"{name}, no grad"
        at = [call.step for call in own]
        panel.plot(at, [call.evaluations for call in own], color=color, linestyle="-" if grad else "--", label=label)
        backward = [call for call in own if call.products]
        if backward:
            style = {"color": color, "linewidth": 0.9, "linestyle": ":"}
            products = [call.products for call in backward]
            panel.plot([call.step for call in backward], products, label=f"{label}, products of backward", **style)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("step")
    panel.set_ylabel("evaluations of f")
    panel.set_title("evaluations over training", loc="left")
    panel.legend(fontsize=8)
    made.tight_layout()
