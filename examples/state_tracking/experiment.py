"""Runs one recipe in a folder: train, test, store; done once, it is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from deqlm.models import ImplicitLM
from deqlm.reporting.environment import environment
from deqlm.sequence.modes import Chunked
from examples.loop import train
from examples.loop.results import RESULT, finished, known_result, write_json
from examples.state_tracking.data import word_problem
from examples.state_tracking.evaluate import predict, summary
from examples.state_tracking.recipe import Recipe
from examples.state_tracking.task import StateTracking

__all__ = ["load", "run", "trained"]


def run(recipe: Recipe, folder: Path, *, device: str = "cpu", progress: bool | None = None) -> dict[str, Any]:
    """Train and test a recipe; return its result, which also lies in the folder.

    A folder that holds the result of this recipe is not trained again; one with checkpoints goes on from there.

    Args:
        recipe: what to do.
        folder: of checkpoints, log and result.
        device: where to do it.
        progress: as for `examples.loop.train`.

    Raises:
        ValueError: the folder holds the result of another recipe.
        deqlm.training.CheckpointError: it holds the checkpoint of another recipe.
    """
    wanted = json.loads(json.dumps(recipe.to_dict()))
    found = known_result(folder, wanted)
    if found is not None:
        return found
    model, training = trained(recipe, folder, device=device, progress=progress)
    problem = word_problem(recipe.problem)
    tests = [summary(predict(model, problem, test, start=recipe.start), test) for test in recipe.tests]
    result = {
        "label": recipe.label,
        "problem": recipe.problem,
        "seed": recipe.loop.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": training,
        "tests": tests,
        "recipe": wanted,
        "environment": environment(torch.device(device)),
    }
    write_json(folder / RESULT, result)
    return result


def trained(
    recipe: Recipe, folder: Path | None, *, device: str = "cpu", progress: bool | None = None
) -> tuple[ImplicitLM, dict[str, Any]]:
    """Return a trained model in eval mode, and what its training came to.

    Args:
        recipe: weights and batches depend on nothing else.
        folder: of checkpoints and log; None keeps nothing.
        device: where to train.
        progress: as for `examples.loop.train`.
    """
    model = _initial(recipe).to(device)
    task = StateTracking(word_problem(recipe.problem), watched=recipe.watched, start=recipe.start)
    done = train(
        model,
        task,
        recipe.loop,
        folder=folder,
        resume=folder is not None,
        about={"label": recipe.label, "model": recipe.model.to_dict()},
        name=recipe.label,
        progress=progress,
    )
    return model.eval(), done.summary()


def load(folder: Path, *, device: str = "cpu") -> tuple[Recipe, ImplicitLM]:
    """Return the recipe of a finished run and its model, in eval mode.

    Raises:
        FileNotFoundError: the folder holds no result.
        ValueError: it is the result of another task, or damaged.
    """
    recipe, _ = finished(folder, Recipe, "problem", "words of groups")
    return recipe, trained(recipe, folder, device=device, progress=False)[0]


def _initial(recipe: Recipe) -> ImplicitLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        model = recipe.model.make()
    if recipe.chunk is not None:
        model.mode = Chunked(recipe.chunk)
    return model
