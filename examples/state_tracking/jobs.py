"""Runs recipes in several processes, with one progress bar for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from deqlm.reporting.progress import Progress
from examples.state_tracking.experiment import run
from examples.state_tracking.recipe import Recipe

__all__ = ["Job", "run_jobs"]

Job = tuple[Recipe, Path]
"""A recipe, and the folder that it is run in."""


def run_jobs(
    jobs: Sequence[tuple[Any, Path]],
    *,
    workers: int = 2,
    device: str = "cpu",
    progress: bool | None = None,
    do: Callable[..., dict[str, Any]] = run,
) -> list[dict[str, Any]]:
    """Return the results of the jobs, in their order; each process has one thread.

    Args:
        jobs: the longest ones first use the workers best.
        workers: processes; 1 runs here.
        device: where models live; a GPU takes one worker.
        progress: True draws a bar, False never, None where stderr is a terminal.
        do: what runs a job, for recipes of another kind with a ``label`` and a ``loop``; a function of a module.

    Raises:
        RuntimeError: a job failed; the others were finished, and their results are stored.
    """
    if workers == 1 or len(jobs) == 1:
        if device == "cpu":
            torch.set_num_threads(1)
        return [do(recipe, folder, device=device, progress=progress) for recipe, folder in jobs]
    pool = ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), initializer=_one_thread)
    with pool:
        futures = [pool.submit(do, recipe, folder, device=device, progress=False) for recipe, folder in jobs]
        _watch(list(zip(futures, jobs, strict=True)), progress)
    failed = [(job, future.exception()) for future, job in zip(futures, jobs, strict=True) if future.exception()]
    if failed:
        ((recipe, folder), error), *_ = failed
        raise RuntimeError(f"{len(failed)} of {len(jobs)} jobs failed, first {recipe.label!r} in {folder}") from error
    return [future.result() for future in futures]


def _one_thread() -> None:
    torch.set_num_threads(1)


def _watch(running: list[tuple[Future[Any], tuple[Any, Path]]], progress: bool | None) -> None:
    """Draw how many steps all jobs together have taken, as their logs tell, until all are over."""
    bar = Progress(sum(recipe.loop.steps for _, (recipe, _) in running), progress, unit="step")
    while not all(future.done() for future, _ in running):
        time.sleep(0.2)
        taken, active = 0, []
        for future, (recipe, folder) in running:
            steps = recipe.loop.steps if future.done() else _steps(folder / "log.csv")
            taken += steps
            if future.running() and not future.done():
                active.append(recipe.label)
        bar.reach(taken, ", ".join(active))
    bar.close()


def _steps(log: Path) -> int:
    """Return the step of the last whole line of a log that is being written, 0 before there is one."""
    lines = log.read_text().splitlines() if log.exists() else []
    first = lines[-1].partition(",")[0] if len(lines) > 1 else ""
    return int(first) if first.isdigit() else 0
