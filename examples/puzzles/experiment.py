"""Runs one recipe in a folder: train, look, store; done once, it is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from deqlm.reporting.environment import environment
from deqlm_solvers.core.checks import require
from examples.loop import train
from examples.loop.results import RESULT, finished, known_result, read_json, write_json
from examples.puzzles.data import Puzzles, Split, load, problem_named
from examples.puzzles.evaluate import BUDGETS, boards, breadth, by_budget, by_difficulty, calibration
from examples.puzzles.model import PuzzleModel
from examples.puzzles.recipe import Recipe
from examples.puzzles.task import PuzzleTask

__all__ = ["look_again", "look_at", "run", "stored", "trained"]

CACHE = "data"
"""Folder beside those of the runs that keeps the puzzles."""
SHOWN = (1, 2, 4, 8, 16, 32)
DEPTHS = (8, 16, 32)
STARTS = (1, 2, 4, 8)


def run(recipe: Recipe, folder: Path, *, device: str = "cpu", progress: bool | None = None) -> dict[str, Any]:
    """Train a recipe and look at it; return its result, which also lies in the folder.

    A folder that holds the result of this recipe is not trained again; one with checkpoints goes on from there.

    Args:
        recipe: what to do.
        folder: of checkpoints, log and result.
        device: where to train.
        progress: as for `examples.loop.train`.

    Raises:
        ValueError: the folder holds the result of another recipe.
        deqlm.training.CheckpointError: it holds the checkpoint of another recipe, or of another task.
    """
    wanted = json.loads(json.dumps(recipe.to_dict()))
    found = known_result(folder, wanted)
    if found is not None:
        return found
    model, training = trained(recipe, folder, device=device, progress=progress)
    result = {
        "label": recipe.label,
        "problem": recipe.draw.problem,
        "seed": recipe.loop.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": training,
        **look_at(model.cpu(), load(recipe.draw, folder.parent / CACHE), recipe.split),
        "recipe": wanted,
        "environment": environment(torch.device(device)),
    }
    write_json(folder / RESULT, result)
    return result


def trained(
    recipe: Recipe, folder: Path | None, *, device: str = "cpu", progress: bool | None = None
) -> tuple[PuzzleModel, dict[str, Any]]:
    """Return a trained model in eval mode, and what its training came to.

    Args:
        recipe: weights and batches depend on nothing else.
        folder: of checkpoints and log; None keeps nothing.
        device: where to train.
        progress: as for `examples.loop.train`.
    """
    puzzles = load(recipe.draw, None if folder is None else folder.parent / CACHE)
    problem = problem_named(recipe.draw.problem)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        model = PuzzleModel(problem, recipe.shape).to(device)
    done = train(
        model,
        PuzzleTask(problem, recipe.draw, puzzles["train"], puzzles["valid"]),
        recipe.loop,
        folder=folder,
        resume=folder is not None,
        about={"label": recipe.label, "shape": recipe.shape.to_dict()},
        name=recipe.label,
        progress=progress,
    )
    return model.eval(), done.summary()


def look_at(model: PuzzleModel, puzzles: dict[Split, Puzzles], split: Split = "test") -> dict[str, Any]:
    """Return what is measured of a trained model.

    Args:
        model: in eval mode, on the CPU.
        puzzles: of every split.
        split: that is looked at; of "valid" only what a choice needs. What several starts bring is also measured on
            "valid", so that rule and number can be chosen there.
    """
    here = puzzles[split]
    if model.shape.layers > 1:
        return {"budgets": by_budget(model, here, (1,))}
    found: dict[str, Any] = {"budgets": by_budget(model, here, BUDGETS)}
    if split == "valid" or model.shape.most == 1:
        return found
    found["calibration"] = calibration(model, here, 2 * model.shape.most)
    found["difficulty"] = by_difficulty(model, here, BUDGETS[-1])
    if model.shape.start == "random":
        found["breadth"] = breadth(model, here, DEPTHS, STARTS)
        found["breadth_valid"] = breadth(model, puzzles["valid"], DEPTHS, STARTS, seed=1)
    hardest = int(here.ratings.argmax())
    found["boards"] = {
        "cells": here.cells[hardest].tolist(),
        "answer": here.answers[hardest].tolist(),
        "looks": boards(model, here.cells[hardest : hardest + 1], SHOWN),
    }
    return found


def look_again(folder: Path) -> dict[str, Any]:
    """Measure a finished run anew, on the puzzles that it was tested on, and store that in its result.

    Raises:
        FileNotFoundError, ValueError: as for `stored`.
    """
    recipe, model = stored(folder)
    looks = look_at(model, load(recipe.draw, folder.parent / CACHE), recipe.split)
    result = {**read_json(folder / RESULT), **looks, "looked": environment(torch.device("cpu"))}
    write_json(folder / RESULT, result)
    return result


def stored(folder: Path, problem: str | None = None) -> tuple[Recipe, PuzzleModel]:
    """Return the recipe of a finished run and its model, in eval mode.

    Args:
        folder: of the run.
        problem: that it must have been trained on; None takes any.

    Raises:
        FileNotFoundError: the folder holds no result.
        ValueError: it is the result of another task, or of another problem.
    """
    recipe, _ = finished(folder, Recipe, "draw", "puzzles")
    if problem is not None:
        trained_on = recipe.draw.problem
        require(trained_on == problem, "folder", str(folder), f"that of a run on {problem}, and it is on {trained_on}")
    return recipe, trained(recipe, folder, progress=False)[0]
