"""Runs one recipe in a folder: train, test, store; done once, it is read back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from deqlm.models import ImplicitLM
from deqlm.reporting.environment import environment
from deqlm.training import checkpoints, load_checkpoint
from deqlm.training.experiment import differences
from examples.catbabi.data import Corpus, load, write_folder
from examples.catbabi.evaluate import guesses, score
from examples.catbabi.recipe import Recipe
from examples.catbabi.task import CatbAbI
from examples.loop import train
from examples.loop.results import RESULT, finished, read_json, write_json
from examples.state_tracking.data.vocabulary import Vocabulary

__all__ = ["how_to_test", "made_up", "read_corpus", "read_run", "run", "trained"]

WATCHED = 4
"""Batches of validation stories that are looked at while a model trains."""


def made_up(folder: Path, *, seed: int = 0) -> Path:
    """Write made-up stories (tasks 1, 2, 6, 7, 19) to ``folder`` unless they are there, and return it."""
    if not (folder / "qa19_test.txt").exists():
        write_folder(folder, stories=1000, held_out=100, seed=seed)
    return folder


@cache
def read_corpus(data: Path, tasks: tuple[int, ...] | None) -> Corpus:
    """Return the stories of some tasks, read once per process.

    Raises:
        FileNotFoundError, ValueError: as `examples.catbabi.data.load`.
    """
    return load(data, tasks=tasks)


def run(
    recipe: Recipe, folder: Path, *, data: Path, device: str = "cpu", progress: bool | None = None
) -> dict[str, Any]:
    """Train and test a recipe; return its result, which also lies in the folder.

    A folder that holds the result of this recipe and these stories is not trained again; one with checkpoints goes on.

    Args:
        recipe: what to do.
        folder: of checkpoints, log and result.
        data: folder of the stories.
        device: where to do it.
        progress: as for `examples.loop.train`.

    Raises:
        ValueError: the folder holds the result of another recipe or of other stories, or the model has another
            vocabulary.
        deqlm.training.CheckpointError: it holds the checkpoint of another recipe or of other stories.
    """
    corpus = read_corpus(data, recipe.tasks)
    recipe.check_corpus(corpus)
    wanted = json.loads(json.dumps(recipe.to_dict()))
    stories = _task(recipe, corpus).describe()
    path = folder / RESULT
    if path.exists():
        found = read_json(path)
        settings, data_differ = differences(found["recipe"], wanted), differences(found["data"], stories)
        if not settings and not data_differ:
            return found
        what = "settings" if settings else "stories"
        raise ValueError(f"{path} is the result of other {what}: choose another folder with --out, or remove it")
    model, training = trained(recipe, folder, corpus, device=device, progress=progress)
    tested = corpus.splits["test"]
    result = {
        "label": recipe.label,
        "seed": recipe.loop.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": training,
        "valid": score(model, corpus.splits["valid"], **how_to_test(recipe)),
        "test": score(model, tested, **how_to_test(recipe)),
        "guess": guesses(corpus.splits["train"], tested),
        "recipe": wanted,
        "data": stories,
        "vocabulary": list(corpus.vocabulary.names),
        "environment": environment(torch.device(device)),
    }
    write_json(path, result)
    return result


def how_to_test(recipe: Recipe) -> dict[str, Any]:
    """Return rows, length and carrying of the windows of a test, as `examples.catbabi.evaluate.score` takes them."""
    return {"rows": recipe.test_rows, "length": recipe.test_length or recipe.length, "carried": recipe.carried}


def trained(
    recipe: Recipe, folder: Path | None, corpus: Corpus, *, device: str = "cpu", progress: bool | None = None
) -> tuple[ImplicitLM, dict[str, Any]]:
    """Return a trained model in eval mode, and what its training came to.

    Args:
        recipe: weights and batches depend on nothing else and the stories.
        folder: of checkpoints and log; None keeps nothing.
        corpus: the stories.
        device: where to train.
        progress: as for `examples.loop.train`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        model = recipe.model.make().to(device)
    task = _task(recipe, corpus)
    task.check_model(model)
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
    return model.eval(), {**done.summary(), "evaluations": done.evaluations}


def read_run(
    folder: Path, data: Path, *, device: str = "cpu", splits: Iterable[str] = ("test",)
) -> tuple[Recipe, ImplicitLM, Corpus]:
    """Return the recipe of a finished run, its model in eval mode, and stories to test it on.

    Args:
        folder: of the run.
        data: folder of stories; words that the model does not know are an error, other stories are not.
        device: where to put the model.
        splits: of the stories.

    Raises:
        FileNotFoundError: the folder holds no result, or no checkpoint.
        ValueError: the stories have words that the model does not know, or lack a task; or the result is of another
            task, or damaged.
    """
    recipe, found = finished(folder, Recipe, "tasks", "stories")
    corpus = load(data, tasks=recipe.tasks, splits=splits, vocabulary=Vocabulary(found["vocabulary"]))
    recipe.check_corpus(corpus)
    return recipe, _weights(recipe, folder, device), corpus


def _task(recipe: Recipe, corpus: Corpus) -> CatbAbI:
    how = {"mode": recipe.mode, "carried": recipe.carried, "openings": recipe.openings}
    return CatbAbI(corpus, **how, watched=WATCHED)


def _weights(recipe: Recipe, folder: Path, device: str) -> ImplicitLM:
    found = checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"{folder} holds no checkpoint: train first")
    model = recipe.model.make()
    model.load_state_dict(load_checkpoint(found[-1])[1]["model"])
    return model.to(device).eval()
