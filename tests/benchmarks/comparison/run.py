"""Everything the page "How it compares" needs, by one command: measure, write records, plots and the page."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison.adjoint import adjoint_maps, measure_adjoint
from benchmarks.comparison.contenders import DEFAULT, PEERS
from benchmarks.comparison.figures import draw_figures
from benchmarks.comparison.growth import BUDGETS, measure_growth
from benchmarks.comparison.jax_peers import jax_missing, measure_jax
from benchmarks.comparison.maps import EASY_CHEAP, HARD, SpeedMap, speed_maps
from benchmarks.comparison.page import blocks, check_page, write_page
from benchmarks.comparison.quality import SOLVER_NAMES, default_solver, measure_quality
from benchmarks.comparison.quality_maps import all_problems
from benchmarks.comparison.speed import measure_overhead, measure_rows, measure_speed
from deqlm.comparison import compare, compare_gradients
from deqlm.comparison.record import write_json
from deqlm.comparison.run import one_line, torch_threads
from deqlm.reporting.environment import environment
from deqlm.reporting.progress import Progress
from deqlm_solvers.core.checks import require, suggest, whole

__all__ = ["PAGE", "PARTS", "RECORD", "Extent", "measure"]

PAGE = "how_it_compares.md"
RECORD = "comparison.json"
NAME = "how it compares"
VERSION = 1

PARTS = ("speed", "double", "overhead", "rows", "adjoint", "quality", "growth", "jax", "solvers", "gradients")
"""What a run measures, in order; the last two are the default runs of `compare` and of `compare_gradients`."""

COUNTS = {"speed": 14, "double": 8, "adjoint": 3, "quality": 50}
"""Maps or problems of a part; drawing the larger ones takes too long for counting them."""


@dataclass(frozen=True)
class Extent:
    """How much of each part is measured; the defaults are what the page shows.

    Attributes:
        rounds: interleaved timed rounds.
        most: maps and problems of every part, from the first; None takes all.
        quality_solvers: solvers that are asked for the quality problems.
        budgets: evaluations allowed in the runs for memory.
    """

    rounds: int = 7
    most: int | None = None
    quality_solvers: tuple[str, ...] = SOLVER_NAMES
    budgets: tuple[int, ...] = BUDGETS

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, 1)

    def of(self, items: Iterable[Any]) -> list[Any]:
        """Return so many of ``items``."""
        return list(islice(items, self.most))


def measure(
    folder: str | Path,
    *,
    parts: Iterable[str] = PARTS,
    jax: str | None = None,
    extent: Extent | None = None,
    plots: bool = True,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure everything, and write ``records/comparison.json``, the page and its plots into ``folder``.

    The page is ``how_it_compares.md``; where there is one, only what stands between its markers is drawn anew. Parts
    that are left out keep what the record in ``folder`` has of them, and the page says at which commit they were
    measured. The record is written after every part, so that Ctrl-C loses one. The whole takes about ten minutes on one
    core, which should have nothing else to do.

    Args:
        folder: such as ``docs``.
        parts: names from `PARTS`; with none the page is drawn anew from the record.
        jax: an interpreter that has jax, jaxopt and optimistix, or None: this one where it has them.
        extent: how much of each part; None takes all.
        plots: draw the plots, which needs matplotlib.
        progress: draw a progress bar on stderr; None when that is a terminal.

    Returns:
        The record, plain data for JSON.

    Raises:
        ValueError: a part nobody knows, a page without its markers, or a malformed record in ``folder``; all are found
            before anything is measured.
        ImportError: plots are wanted and matplotlib is missing.
    """
    chosen = list(parts)
    for part in chosen:
        require(part in PARTS, "parts", part, f"among {', '.join(PARTS)}: {suggest(part, PARTS)}")
    folder = Path(folder)
    whole_extent = extent or Extent()
    stored = folder / "records" / RECORD
    stored.parent.mkdir(parents=True, exist_ok=True)
    record = _former(stored)
    if chosen or "environment" not in record:
        record.update(record=NAME, version=VERSION, environment=environment(), missing=_missing())
    record.setdefault("measured", {})
    _check(record, stored, folder / PAGE)
    python = jax or sys.executable
    begun = time.perf_counter()
    with torch_threads(1), Progress(_steps(whole_extent, chosen), progress) as bar:
        for part in PARTS:
            if part not in chosen:
                continue
            started = time.perf_counter()
            if part == "jax" and (why := jax_missing(python)):
                if not record.get("jax"):
                    record["missing"]["jax"] = why
                continue
            found = _measure(part, whole_extent, folder, python, plots, bar.step)
            if found is not None:
                record[part] = found
            seconds = round(time.perf_counter() - started, 1)
            record["measured"][part] = {"commit": record["environment"]["commit"], "seconds": seconds}
            write_json(record, stored)
    record["seconds"] = time.perf_counter() - begun
    record["figures"] = draw_figures(record, folder / "assets") if plots else record.get("figures", [])
    write_json(record, stored)
    write_page(folder / PAGE, record)
    return record


def _measure(part: str, extent: Extent, folder: Path, python: str, plots: bool, step: Callable[[str], None]) -> Any:
    if part == "speed":
        return measure_speed(extent.of(speed_maps()), extent.rounds, step)
    if part == "double":
        return measure_speed(extent.of(_double_maps()), extent.rounds, step, labels=(DEFAULT, *PEERS))
    if part == "overhead":
        return measure_overhead(step)
    if part == "rows":
        return measure_rows(extent.rounds, step)
    if part == "adjoint":
        return measure_adjoint(extent.of(adjoint_maps()), extent.rounds, step)
    if part == "quality":
        found = measure_quality(extent.of(all_problems()), extent.quality_solvers, step=step)
        return {**found, "default": default_solver()}
    if part == "growth":
        return measure_growth(extent.budgets, step)
    if part == "jax":
        return _jax(python, extent, step)
    step(f"the default run of {part}")
    _default_run(part, extent, folder, plots)
    return None


def _jax(python: str, extent: Extent, step: Callable[[str], None]) -> Any:
    maps = [*extent.of(speed_maps()), *extent.of(_double_maps())]
    try:
        return measure_jax(python, maps, extent.rounds, step)
    except RuntimeError as error:
        return {"packages": {}, "maps": [], "message": one_line(error)}


def _double_maps() -> Iterator[SpeedMap]:
    return (m for m in speed_maps(torch.float64) if m.group in (EASY_CHEAP, HARD))


def _default_run(part: str, extent: Extent, folder: Path, plots: bool) -> None:
    """Run `compare` or `compare_gradients` as the command line does, record and plots where the page finds them."""
    small = extent.most is not None
    records, assets = folder / "records", folder / "assets"
    if part == "solvers":
        result: Any = compare(quick=small, progress=False)
        drawn = {"profile": "profile", "residual_evaluations": "residual_all"}
    else:
        result = compare_gradients(quick=small, progress=False)
        drawn = {"gradients": "gradients"}
    for path in result.save(records, plots=plots):
        if path.suffix not in (".svg", ".png"):
            continue
        assets.mkdir(parents=True, exist_ok=True)
        name = drawn.get(path.stem)
        if path.suffix == ".svg" and name:
            path.replace(assets / f"{name}.svg")
        else:
            path.unlink()


def _steps(extent: Extent, parts: list[str]) -> int:
    """Return how many steps a run tells of."""
    fixed = {"overhead": 5, "rows": 3, "growth": 6 * len(extent.budgets), "jax": 1, "solvers": 1, "gradients": 1}
    most = extent.most
    return sum(fixed.get(p) or min(COUNTS[p], most or COUNTS[p]) for p in parts)


def _missing() -> dict[str, str]:
    """Return peers that are not installed here, and what installs them."""
    remedy = 'pip install "deqlm[compare]"'
    return {name: remedy for name in ("torchdeq", "scipy") if find_spec(name) is None}


def _check(record: dict[str, Any], stored: Path, page: Path) -> None:
    """Draw the page from what the record has already, so that nothing fails behind minutes of work."""
    try:
        require(isinstance(record["measured"], dict), "measured", record["measured"], "a mapping")
        blocks(record)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"the record {stored} is malformed ({why}); move it away to measure anew") from error
    check_page(page, record)


def _former(path: Path) -> dict[str, Any]:
    """Return the record that lies there, if it is ours; else an empty one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("record") == NAME else {}
