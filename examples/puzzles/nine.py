"""What 9x9 would cost: a few steps on this machine, and the operations of all of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from deqlm.reporting.environment import environment
from deqlm.training import Stage, adamw
from deqlm_solvers.core.checks import whole
from examples.puzzles.data import load, problem_named
from examples.puzzles.model import PuzzleModel, Shape
from examples.puzzles.recipe import Recipe
from examples.puzzles.task import PuzzleTask

__all__ = ["operations", "try_out"]


def operations(shape: Shape, cells: int) -> int:
    """Return the operations of one evaluation of the layer on one puzzle: two per multiplication and addition."""
    width, hidden = shape.width, shape.hidden
    weights = 4 * width**2 + 2 * width * hidden
    return 2 * cells * weights + 4 * cells**2 * width


def try_out(recipe: Recipe, cache: Path, *, steps: int, rows: int) -> dict[str, Any]:
    """Take some steps on fewer rows; return losses, seconds per step, and the operations of the whole training.

    Backward takes twice the operations of forward, so that an evaluation counts three times.

    Args:
        recipe: of the training.
        cache: folder of the puzzles.
        steps: to take.
        rows: puzzles of a step.

    Raises:
        ValueError: fewer than one of them.
    """
    whole("steps", steps, 1)
    problem, puzzles = problem_named(recipe.draw.problem), load(recipe.draw, cache)
    torch.manual_seed(recipe.loop.seed)
    model = PuzzleModel(problem, recipe.shape)
    task = PuzzleTask(problem, recipe.draw, puzzles["train"], puzzles["valid"])
    stage = Stage(length=len(problem.places), rows=rows)
    optimizer, losses, began = adamw(model, lr=recipe.loop.lr), [], time.perf_counter()
    for step in range(steps):
        batch = task.batch(recipe.loop.seed, step, stage)
        loss = model(batch.ids, labels=batch.targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = (time.perf_counter() - began) / steps
    rows_of_all = recipe.loop.curriculum.stages[0].rows
    evaluations = (recipe.shape.least + recipe.shape.most) / 2
    flop = 3.0 * recipe.loop.steps * rows_of_all * evaluations * operations(recipe.shape, stage.length)
    return {
        "losses": losses,
        "rows": rows,
        "seconds_per_step": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flop": flop,
        "recipe": recipe.to_dict(),
        "environment": environment(torch.device("cpu")),
    }
