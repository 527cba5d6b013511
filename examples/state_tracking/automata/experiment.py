"""Trains, tests and stores one recipe; done once, it is read back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deqlm.reporting.environment import environment
from deqlm.sequence.modes import Chunked
from examples.loop import TrainingError, accuracy, train
from examples.loop.results import RESULT, known_result, write_json
from examples.state_tracking.automata.recipe import AutomatonRecipe
from examples.state_tracking.automata.task import Automaton

__all__ = ["run", "tested"]

MOST = 200
"""Evaluations of a chunk of 16 tokens in a test, at most."""


def run(recipe: AutomatonRecipe, folder: Path, *, device: str = "cpu", progress: bool | None = None) -> dict[str, Any]:
    """Train and test a recipe; return its result, which also lies in the folder.

    Args:
        recipe: what to do.
        folder: of checkpoints, log and result; with a result of this recipe nothing is trained again.
        device: where to do it.
        progress: as for `examples.loop.train`.

    Raises:
        ValueError: the folder holds the result of another recipe.
        deqlm.training.CheckpointError: it holds a checkpoint of another recipe or task.
    """
    wanted = json.loads(json.dumps(recipe.to_dict()))
    found = known_result(folder, wanted)
    if found is not None:
        return found
    model = _initial(recipe).to(device)
    about = {"label": recipe.label, "model": recipe.model.to_dict()}
    result = {
        "label": recipe.label,
        "contract": recipe.contract.to_dict(),
        "seed": recipe.loop.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    try:
        task = Automaton(recipe.contract, mixed=recipe.mixed)
        how: dict[str, Any] = {"folder": folder, "resume": True, "about": about, "name": recipe.label}
        training = train(model, task, recipe.loop, **how, progress=progress)
        result |= {"training": training.summary(), "valid": training.evaluations[-1]["valid"]}
        result |= tested(model.eval(), recipe)
    except TrainingError as error:
        result |= {"failed": str(error), "mean": None, "tests": []}
    result |= {"recipe": wanted, "environment": environment(torch.device(device))}
    write_json(folder / RESULT, result)
    return result


def tested(model: nn.Module, recipe: AutomatonRecipe) -> dict[str, Any]:
    """Return the accuracy where answers are asked for, in the mean of the tested lengths and at each, and its time."""
    began, tests = time.process_time(), []
    given: dict[str, Any] = {}
    if recipe.model.implicit:
        stop = model.no_grad.stop.replace(max_iter=MOST)  # type: ignore[union-attr]
        given = {"mode": Chunked(16), "stop": stop, "on_failure": "ignore"}
    device = next(model.parameters()).device
    for length in recipe.lengths or ():
        ids, answers = recipe.contract.draw(recipe.rows, length, split=recipe.split)
        with torch.no_grad():
            output = model(ids.to(device), **given)
        right = accuracy(output.logits.cpu(), recipe.contract.labels(ids, answers)).item()
        tests.append({"length": length, "rows": recipe.rows, "last": round(right, 6)})
        if recipe.model.implicit:
            tests[-1]["converged"] = output.solution.converged.double().mean().item()
    mean = sum(test["last"] for test in tests) / len(tests)
    return {"mean": mean, "tests": tests, "test_seconds": round(time.process_time() - began, 2)}


def _initial(recipe: AutomatonRecipe) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        model = recipe.model.make()
    if recipe.chunk is not None:
        model.mode = Chunked(recipe.chunk)
    return model
