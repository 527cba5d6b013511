"""A comparison as JSON and as files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deqlm.compare.recorder import Trace
from deqlm.compare.result import Comparison, Entry, ProblemResult

if TYPE_CHECKING:
    from deqlm.compare.gradients import GradientComparison

__all__ = ["VERSION", "comparison_record", "finite", "gradient_record", "save", "save_gradients", "write_json"]

VERSION = 1
"""Version of the record's layout."""


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain data; infinities and NaN are None."""
    return {
        "record": "deqlm compare",
        "version": VERSION,
        "environment": comparison.environment,
        "settings": comparison.settings,
        "seconds": comparison.seconds,
        "interrupted": comparison.interrupted,
        "problems": [_problem(problem) for problem in comparison.problems],
    }


def gradient_record(comparison: GradientComparison) -> dict[str, Any]:
    """Return a comparison of gradients as plain data; infinities and NaN are None."""
    return {
        "record": "deqlm compare --gradients",
        "version": VERSION,
        "environment": comparison.environment,
        "settings": comparison.settings,
        "seconds": comparison.seconds,
        "interrupted": comparison.interrupted,
        "problems": [
            {
                **{k: v for k, v in vars(problem).items() if k != "entries"},
                "entries": [{k: finite(v) for k, v in vars(entry).items()} for entry in problem.entries],
            }
            for problem in comparison.problems
        ],
    }


def save(comparison: Comparison, folder: Path, plots: bool) -> list[Path]:
    """Write ``compare.json``, ``compare.txt`` and the plots into ``folder``; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [write_json(comparison.to_dict(), folder / "compare.json")]
    text = folder / "compare.txt"
    text.write_text(f"{comparison}\n", encoding="utf-8")
    written.append(text)
    if plots and any(problem.entries for problem in comparison.problems):
        from deqlm.compare.plots import draw_all

        written += draw_all(comparison, folder)
    return written


def save_gradients(comparison: GradientComparison, folder: Path, plots: bool) -> list[Path]:
    """Write ``gradients.json``, ``gradients.txt`` and the plot into ``folder``; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [write_json(comparison.to_dict(), folder / "gradients.json")]
    text = folder / "gradients.txt"
    text.write_text(f"{comparison}\n", encoding="utf-8")
    written.append(text)
    if plots and any(problem.entries for problem in comparison.problems):
        from deqlm.compare.gradient_plot import draw_gradients

        written += draw_gradients(comparison, folder)
    return written


def write_json(data: dict[str, Any], path: Path) -> Path:
    """Write strict JSON."""
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def finite(value: Any) -> Any:
    """Return ``value`` with floats that JSON does not know replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value


def _problem(problem: ProblemResult) -> dict[str, Any]:
    plain = {key: value for key, value in vars(problem).items() if key != "entries"}
    return {**plain, "entries": [_entry(entry) for entry in problem.entries]}


def _entry(entry: Entry) -> dict[str, Any]:
    plain = {key: finite(value) for key, value in vars(entry).items() if key != "trace"}
    return {**plain, "seconds": entry.seconds, "trace": _trace(entry.trace)}


def _trace(trace: Trace | None) -> dict[str, Any] | None:
    return None if trace is None else {key: finite(value) for key, value in vars(trace).items()}
