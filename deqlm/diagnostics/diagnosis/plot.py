"""The residual of every row against evaluations, as asked and by plain iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqlm.diagnostics.diagnosis.findings import Findings

__all__ = ["draw"]

MOST_NAMED = 8


def draw(found: Findings, title: str, path: Path) -> Path:
    """Write the plot; see `Diagnosis.plot`."""
    try:
        from deqlm.reporting.style import PALETTE, figure, steady

        with steady():
            made = figure(7.5, 4.2)
            _draw(made, found, title, PALETTE)
            made.savefig(path, dpi=150)
    except ImportError as error:
        raise ImportError('a plot needs matplotlib: pip install "deqlm[compare]"') from error
    return path


def _draw(made: Any, found: Findings, title: str, palette: Sequence[str]) -> None:
    panel = made.subplots()
    rows = len(found.passed)
    asked, plain = found.trace, None if found.plain is None else found.plain.trace
    for row in range(rows):
        color = palette[row % len(palette)]
        if asked is not None:
            label = f"row {row}: {found.status[row]}" if row < MOST_NAMED else None
            _curve(panel, asked[row], color, 1.8, "-", label)
            end = _last(asked[row])
            if end is not None:
                marker = "o" if found.passed[row] else "X"
                panel.plot(*end, marker=marker, color=color, linestyle="none", markeredgecolor="white")
        if plain is not None and not (found.plain_solver and asked is not None):
            _curve(panel, plain[row], color, 0.9, ":", None)
    if plain is not None and not found.plain_solver:
        panel.plot([], [], color="#777777", linewidth=0.9, linestyle=":", label="plain iteration")
    panel.set_yscale("log")
    panel.set_xlabel("evaluations of f")
    panel.set_ylabel("residual ||f(z) - z||")
    panel.set_title(title, loc="left")
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=8)
    made.tight_layout()


def _curve(panel: Any, curve: Sequence[float], color: str, width: float, style: str, label: str | None) -> None:
    shown = [(k + 1, r) for k, r in enumerate(curve) if math.isfinite(r) and r > 0]
    panel.plot([k for k, _ in shown], [r for _, r in shown], color=color, linewidth=width, linestyle=style, label=label)


def _last(curve: Sequence[float]) -> tuple[int, float] | None:
    shown = [(k + 1, r) for k, r in enumerate(curve) if math.isfinite(r) and r > 0]
    return shown[-1] if shown else None
