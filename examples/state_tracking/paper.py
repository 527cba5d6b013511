"""The authors' experiments at their size, as plain data: for one GPU, proven on a CPU by a few steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from deqlm.models import LMOptions, preset
from deqlm.sequence.modes import Chunked, Simultaneous
from deqlm.training import Curriculum, Phases, Stage, free, warm_up
from examples.loop import LoopOptions, train
from examples.state_tracking.data import word_problem
from examples.state_tracking.recipe import Recipe, Test
from examples.state_tracking.task import StateTracking

__all__ = [
    "EXPERIMENTS",
    "HARD",
    "estimate",
    "folder_of",
    "hard_tokens",
    "layers_against_length",
    "recipes_of",
    "try_out",
]

HARD = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02)
"""Shares of hard tokens that are trained on; a token is easy with p = 1 - share."""

STEPS = 16_384
"""One epoch of 8,388,608 sequences in batches of 512."""
WARM_UP = 4005
LENGTH, ROWS = 256, 512

LAYERS = (1, 2, 4, 8, 16)
LENGTHS = (4, 8, 16, 32)
"""Trained lengths of the word problem of S5."""

EXPERIMENTS = ("hard", "layers")


def hard_tokens(share: float, *, seed: int = 0) -> Recipe:
    """Return the training on A5 x M with a share of hard tokens, and the tests at a half and a tenth.

    One implicit Mamba2 layer of width 256; four unrolled evaluations for 4005 steps, then at most 32 and 4 phantom
    steps; AdamW at 1e-3, warmed up over a tenth of the steps and decaying linearly, gradients clipped at .25.

    Args:
        share: of hard tokens, in [0, 1].
        seed: of weights and batches.
    """
    p = round(1 - share, 6)
    tests = tuple(
        Test(length=length, p=p_test, rows=4096, batch=256, mode=mode, max_iter=2048)
        for length in (256, 1024)
        for p_test in (0.5, 0.9)
        for mode in (Simultaneous(), Chunked(16))
    )
    return Recipe(
        label=f"A5xM, {100 * share:g} % hard",
        problem="A5xM",
        model=preset("mamba2-state-tracking-implicit").replace(dropout=0.0),
        loop=_loop(Stage(length=LENGTH, rows=ROWS, p=p), steps=STEPS, seed=seed),
        tests=tests,
        watched=((256, 0.5), (256, 0.9)),
    )


def layers_against_length(length: int, layers: int | None, *, seed: int = 0) -> Recipe:
    """Return a training on the word problem of S5: an implicit layer (None), or so many explicit ones.

    The last token of each length tells which model solves it; that of the implicit one at 32 is tested to 256.

    Args:
        length: tokens per sequence.
        layers: of the explicit model.
        seed: of weights and batches.
    """
    model = preset("mamba2-state-tracking-implicit").replace(vocab_size=120, dropout=0.0)
    if layers is not None:
        plain = {"implicit": False, "n_layer": layers, "max_iter": 24, "eval_max_iter": None, "best_f": False}
        model = model.replace(**plain)
    loop = _loop(Stage(length=length, rows=ROWS), steps=STEPS, seed=seed)
    if layers is not None:
        loop = loop.replace(phases=None)
    times = (1, 2, 4, 8)
    tests = tuple(Test(length=length * n, rows=2048, batch=512, mode=Chunked(16), max_iter=2048) for n in times)
    name = "implicit, 1 layer" if layers is None else f"explicit, {layers} layer{'s' * (layers > 1)}"
    return Recipe(label=f"S5, L={length}, {name}", problem="S5", model=model, loop=loop, tests=tests)


def recipes_of(experiment: str, *, seed: int = 0) -> list[Recipe]:
    """Return the recipes of "hard" (six shares) or "layers" (four lengths, six models each).

    Raises:
        KeyError: an unknown experiment.
    """
    if experiment == "hard":
        return [hard_tokens(share, seed=seed) for share in HARD]
    if experiment == "layers":
        return [layers_against_length(n, layers, seed=seed) for n in LENGTHS for layers in (None, *LAYERS)]
    raise KeyError(f"unknown experiment {experiment!r}: known are {', '.join(EXPERIMENTS)}")


def _loop(stage: Stage, *, steps: int, seed: int) -> LoopOptions:
    return LoopOptions(
        steps=steps,
        curriculum=Curriculum((stage,)),
        phases=Phases((warm_up(WARM_UP), free(max_iter=32))),
        lr=1e-3,
        warm_up=steps // 10,
        decay="linear",
        clip=0.25,
        seed=seed,
        read_every=10,
        log_every=50,
        evaluate_every=500,
        checkpoint_every=500,
    )


def estimate(recipe: Recipe, flops: float) -> dict[str, float]:
    """Return what the training of a recipe costs, from counts of parameters and of evaluations.

    A token costs two operations per weight of the blocks and of the head in one evaluation, and twice that again in
    its backward. The free phase is counted at its most evaluations.

    Args:
        recipe: of this module.
        flops: operations per second that the machine reaches.

    Returns:
        ``evaluations`` of the blocks on one sequence, forward and backward, ``flop`` and ``hours``.
    """
    weights = _weights(recipe.model)
    phases, steps = recipe.loop.phases, recipe.loop.steps
    if phases is None:
        forward = backward = float(steps)
    else:
        unrolled = min(steps, WARM_UP)
        solved, phantom = recipe.model.max_iter, recipe.model.phantom_steps
        forward = unrolled * 4.0 + (steps - unrolled) * (solved + phantom)
        backward = unrolled * 4.0 + (steps - unrolled) * phantom
    (stage,) = recipe.loop.curriculum.stages
    tokens = stage.rows * stage.length
    flop = 2.0 * weights * tokens * (forward + 2 * backward)
    return {"evaluations": forward + 2 * backward, "flop": flop, "hours": flop / flops / 3600}


def _weights(options: LMOptions) -> int:
    return sum(p.numel() for p in options.make("meta").parameters())


def try_out(recipe: Recipe, *, steps: int, rows: int, device: str = "cpu") -> dict[str, Any]:
    """Take a few steps of a recipe in each of its phases, on fewer rows; return losses and seconds per step.

    Args:
        recipe: of this module.
        steps: in each phase.
        rows: sequences per step.
        device: where.
    """
    (stage,) = recipe.loop.curriculum.stages
    phases = recipe.loop.phases
    plan = [None] if phases is None else [Phases((phase.replace(steps=None),)) for phase in phases.phases]
    torch.manual_seed(recipe.loop.seed)
    model = recipe.model.make(device)
    found = []
    for phase in plan:
        changes = {"read_every": 1, "log_every": 1, "evaluate_every": None, "checkpoint_every": None, "warm_up": 0}
        course = Curriculum((stage.replace(rows=rows),))
        loop = recipe.loop.replace(steps=steps, curriculum=course, phases=phase, **changes)
        began = time.perf_counter()
        done = train(model, StateTracking(word_problem(recipe.problem)), loop, progress=False)
        seconds = (time.perf_counter() - began) / steps
        name = "explicit" if phase is None else phase.phases[0].gradient.name
        found.append({"phase": name, "losses": [r["loss"] for r in done.records], "seconds_per_step": seconds})
    return {"label": recipe.label, "rows": rows, "length": stage.length, "phases": found}


def folder_of(recipe: Recipe, out: Path) -> Path:
    """Return where a recipe of this module is run."""
    slug = recipe.label.replace(", ", "-").replace(" ", "").replace("%", "percent").replace("=", "")
    return out / f"{slug}-{recipe.loop.seed}"
