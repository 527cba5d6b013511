"""The paper's training at its size: what it costs, and a few steps of it as a proof that it runs."""

from __future__ import annotations

import time
from typing import Any

import torch

from deqlm.gradients import Unrolled
from deqlm.models import LMOptions
from deqlm.training import Curriculum, Phases
from examples.catbabi.data import Corpus
from examples.catbabi.recipe import Recipe
from examples.catbabi.task import CatbAbI
from examples.loop import train

__all__ = ["estimate", "try_out"]


def estimate(recipe: Recipe, flops: float) -> dict[str, float]:
    """Return what the training of a recipe costs, from counts of parameters and of evaluations.

    A token costs two operations per weight of the blocks and of the head in one evaluation, and twice that again in
    its backward. Solves are counted at their most evaluations. Gradient checkpointing evaluates once more in backward,
    and carrying the state behind unrolled evaluations takes a second solve.

    Args:
        recipe: any.
        flops: operations per second that the machine reaches.

    Returns:
        ``evaluations`` of the blocks on one window, forward and twice backward, ``flop`` and ``hours``.
    """
    steps, plan = recipe.loop.steps, recipe.loop.phases
    forward = backward = 0.0
    if plan is None:
        forward = backward = float(steps)
    else:
        begins = [0, *plan.ends()]
        ends = [*plan.ends(), steps][: len(plan.phases)]
        for phase, first, end in zip(plan.phases, begins, ends, strict=False):
            taken = max(0, min(end, steps) - first)
            most = phase.stop.max_iter
            if isinstance(phase.gradient, Unrolled):
                forward += taken * most * (1 + phase.gradient.checkpoint + recipe.carried)
                backward += taken * most
            else:
                phantom = recipe.model.phantom_steps
                forward += taken * (most + phantom)
                backward += taken * phantom
    tokens = recipe.rows * recipe.length
    flop = 2.0 * _weights(recipe.model) * tokens * (forward + 2 * backward)
    return {"evaluations": forward + 2 * backward, "flop": flop, "hours": flop / flops / 3600}


def _weights(options: LMOptions) -> int:
    return sum(p.numel() for p in options.make("meta").parameters())


def try_out(recipe: Recipe, corpus: Corpus, *, steps: int, rows: int, device: str = "cpu") -> dict[str, Any]:
    """Take a few steps of a recipe in each of its phases, on fewer rows; return losses and seconds per step.

    Args:
        recipe: any.
        corpus: its stories.
        steps: in each phase.
        rows: windows per step.
        device: where.

    Raises:
        ValueError: a model of another vocabulary.
    """
    recipe.check_corpus(corpus)
    (stage,) = recipe.loop.curriculum.stages
    phases = recipe.loop.phases
    plan = [None] if phases is None else [Phases((phase.replace(steps=None),)) for phase in phases.phases]
    torch.manual_seed(recipe.loop.seed)
    model = recipe.model.make(device)
    task = CatbAbI(corpus, mode=recipe.mode, carried=recipe.carried)
    found = []
    for phase in plan:
        changes = {"read_every": 1, "log_every": 1, "evaluate_every": None, "checkpoint_every": None, "warm_up": 0}
        course = Curriculum((stage.replace(rows=rows),))
        loop = recipe.loop.replace(steps=steps, curriculum=course, phases=phase, **changes)
        began = time.perf_counter()
        done = train(model, task, loop, progress=False)
        seconds = (time.perf_counter() - began) / steps
        name = "explicit" if phase is None else phase.phases[0].gradient.name
        found.append({"phase": name, "losses": [r["loss"] for r in done.records], "seconds_per_step": seconds})
    return {"label": recipe.label, "rows": rows, "length": stage.length, "phases": found}
