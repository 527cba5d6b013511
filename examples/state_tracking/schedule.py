"""One fixed point, any schedule: the same answers token by token, in chunks and all at once, and what each costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deqlm.reporting.environment import environment
from deqlm.sequence.modes import Chunked, Mode, Sequential, Simultaneous
from deqlm_solvers.core.checks import whole
from examples.loop.results import read_json, write_json
from examples.state_tracking.data import word_problem
from examples.state_tracking.evaluate import Outcome, agreement, predict, summary
from examples.state_tracking.experiment import load
from examples.state_tracking.jobs import run_jobs
from examples.state_tracking.recipe import Test
from examples.state_tracking.recipes import demo_recipes

__all__ = ["LENGTHS", "ROUNDS", "WHOLE", "schedules"]

LENGTHS = (256, 1024, 4096, 16384, 65536)
ROUNDS: tuple[Mode, ...] = (Sequential(), Chunked(16), Chunked(64), Simultaneous())
WHOLE = 4096
"""Tokens up to which all of them are solved at once: evaluations grow with the length, and so time with its square."""


def schedules(
    out: Path, *, group: str = "Z2", lengths: tuple[int, ...] = LENGTHS, whole_to: int = WHOLE, **how: Any
) -> dict[str, Any]:
    """Train the demo's implicit layer and solve one sequence of every length by every schedule.

    Each length is stored when it is done, all of it as ``out``/schedule.json.

    Args:
        out: folder.
        group: of the demo.
        lengths: tokens, each at least 2.
        whole_to: longest length that is solved all at once.
        how: progress, as for `run_jobs`.

    Raises:
        ValueError: a length below 2.
    """
    for length in lengths:
        whole("length", length, 2)
    recipe = demo_recipes(group)[0]
    run_jobs([(recipe, out / "model")], workers=1, **how)
    table = [line for length in lengths for line in _at(length, out, whole_to)]
    where = environment(torch.device("cpu"))
    data = {"group": group, "label": recipe.label, "trained": recipe.length, "table": table, "environment": where}
    write_json(out / "schedule.json", data)
    return data


def _at(length: int, out: Path, whole_to: int) -> list[dict[str, Any]]:
    path = out / f"{length}.json"
    if path.exists():
        return read_json(path)
    recipe, model = load(out / "model")
    problem, reference, found = word_problem(recipe.problem), None, []
    for mode in ROUNDS:
        if isinstance(mode, Simultaneous) and length > whole_to:
            continue
        most = 2 * length + 100 if isinstance(mode, Simultaneous) else 200
        test = Test(length=length, rows=1, batch=1, mode=mode, max_iter=most)
        outcome = predict(model, problem, test)
        reference = outcome if reference is None else reference
        found.append(_line(outcome, test, reference))
    write_json(path, found)
    return found


def _line(outcome: Outcome, test: Test, reference: Outcome) -> dict[str, Any]:
    line = {**summary(outcome, test), "agreement": agreement(outcome, reference)}
    del line["accuracy"], line["token_steps"]
    return line
