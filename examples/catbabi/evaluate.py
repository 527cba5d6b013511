"""What a model answers: accuracy at the questions, pooled and per task, and what that costs."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch import nn

from deqlm.models import ImplicitLM
from deqlm_solvers import Cost
from deqlm_solvers.core.checks import require, whole
from examples.catbabi.data import IGNORE, PAD, Stories, Windows

__all__ = ["guesses", "score"]


def score(
    model: nn.Module,
    stories: Stories,
    *,
    rows: int,
    length: int,
    carried: bool = False,
    batches: int | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Return as JSON data which answers of a split a model gets right.

    Args:
        model: `deqlm.models.ImplicitLM` in eval mode, or what is called like one.
        stories: of one split, in the order of the files.
        rows: windows at a time, fewer where there are fewer stories.
        length: tokens of a window.
        carried: hand the state from window to window; False packs whole stories into windows that stand alone.
        batches: look at so many batches of stories in a fixed random order; None at all stories.
        how: options of the model's call, such as ``mode`` and ``stop``.

    Returns:
        ``accuracy`` of all answers, ``questions``, ``cut`` stories whose beginning the model did not see, and per task
        the same two; of an implicit model also ``converged``, the fraction of its solves, ``evaluations_per_token``
        over real tokens and padding, and ``seconds``.

    Raises:
        ValueError: a word that the model has no row for, or nothing to look at.
    """
    if batches is not None:
        whole("batches", batches, 1)
    rows = min(rows, len(stories))
    windows = Windows(stories=stories, batch=rows, length=length, carried=carried, shuffle=batches is not None)
    device = next(model.parameters()).device
    if isinstance(model, ImplicitLM) and model.backbone.implicit:
        how["on_failure"] = "ignore"  # told as ``converged``
    right: Counter[int] = Counter()
    asked: Counter[int] = Counter()
    solves, tokens, cost, cache = [], 0, Cost(), None
    clocks = time.process_time(), time.perf_counter()
    with torch.no_grad():
        for number, batch in enumerate(windows.epoch()):
            if number == batches:
                break
            ids = batch.inputs.to(device)
            if carried:
                how["cache"], how["use_cache"] = None if batch.fresh else cache, True
            output = model(ids, mask=ids != PAD, **how)
            cache = output.cache
            counts = batch.targets != IGNORE
            correct = (output.logits.argmax(-1).cpu() == batch.targets) & counts
            asked.update(batch.tasks[counts].tolist())
            right.update(batch.tasks[correct].tolist())
            if output.solution is not None:
                solves.append(output.solution.converged.cpu())
                cost, tokens = cost + output.solution.cost, tokens + ids.numel()
    require(asked.total() > 0, "batches", batches, "enough to hold a question")
    found: dict[str, Any] = {
        "accuracy": right.total() / asked.total(),
        "questions": asked.total(),
        "cut": 0 if carried else windows.cut(),
        "tasks": {str(t): {"accuracy": right[t] / n, "questions": n} for t, n in sorted(asked.items())},
        "rows": rows,
        "length": length,
        "carried": carried,
        "seconds": {
            "cpu": round(time.process_time() - clocks[0], 3),
            "wall": round(time.perf_counter() - clocks[1], 3),
        },
    }
    if solves:
        found["converged"] = torch.cat(solves).double().mean().item()
        found["evaluations_per_token"] = round(cost.token_evaluations / tokens, 2)
    return found


def guesses(train: Stories, test: Stories) -> dict[str, Any]:
    """Return the accuracy of one fixed answer per task, the most frequent one of the training stories.

    Args:
        train: where the answers are counted.
        test: where they are given.

    Returns:
        ``accuracy`` pooled, and per task ``tasks``.
    """
    counted = _answers(train)
    best = {task: answers.most_common(1)[0][0] for task, answers in counted.items()}
    tested = _answers(test)
    right = {task: answers[best[task]] if task in best else 0 for task, answers in tested.items()}
    total = sum(answers.total() for answers in tested.values())
    tasks = {str(task): right[task] / answers.total() for task, answers in sorted(tested.items())}
    return {"accuracy": sum(right.values()) / total, "tasks": tasks}


def _answers(stories: Stories) -> dict[int, Counter[int]]:
    places = (stories.tokens[:-1] == stories.question).nonzero()[0]
    story = stories.starts.searchsorted(places, side="right") - 1
    found: dict[int, Counter[int]] = {}
    for task, answer in zip(stories.tasks[story].tolist(), stories.tokens[places + 1].tolist(), strict=True):
        found.setdefault(task, Counter())[answer] += 1
    return found
