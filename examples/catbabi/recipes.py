"""The recipes as plain data: ten minutes on two cores, the paper's, and one of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from deqlm.models import LMOptions, Mamba2Options
from deqlm.training import Curriculum, Phases, Stage, free, warm_up
from deqlm_solvers.core.checks import require, whole
from examples.catbabi.recipe import Recipe
from examples.loop import LoopOptions
from examples.loop.results import read_json

__all__ = [
    "CPU_STEPS",
    "CPU_TASKS",
    "PAPER_RATES",
    "PAPER_ROWS",
    "RATES",
    "RATES_TRIED",
    "TWINS",
    "TWIN_STEPS",
    "cpu_recipes",
    "cpu_twin",
    "found_rate",
    "own_recipe",
    "paper_recipes",
]

CPU_TASKS = (1, 6, 9)
"""Tasks of the ten minutes: who is where, asked for, confirmed and negated; each helps with the others."""

CPU_STEPS = 4000
"""Of the implicit model."""

TWIN_STEPS = 5
"""Steps of the explicit twin per step of the implicit model, so that it has at least as much time."""

CPU_WINDOWS = Stage(length=112, rows=8)
"""A story of these tasks has at most 110 tokens."""

CPU_OPENINGS = Stage(length=40, rows=22)
"""What three fifths of the steps are trained on first: two facts and a question, mostly twice."""

RATES = Path(__file__).with_name("rates.json")
"""What the search of the twin's learning rate tried and found; ``search`` writes it."""

RATES_TRIED = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TWINS = (CPU_STEPS * TWIN_STEPS, CPU_STEPS)
"""Steps of the twin in its two trainings; each has a learning rate of its own."""

PAPER_STEPS, PAPER_UNROLLED = 15_000, 5_000
PAPER_ITERATIONS = 32
"""Unrolled evaluations of the first phase."""
PAPER_RATES = (1e-4, 5e-4, 1e-3, 5e-3)
PAPER_ROWS = (128, 256)


def cpu_recipes(words: int, tasks: tuple[int, ...] | None = CPU_TASKS, *, seed: int = 0) -> list[Recipe]:
    """Return one implicit layer, and the same block as an explicit layer at its best stored rates.

    The twin is trained twice: with more steps, so that it has the time of the implicit model, and with equal steps.
    Windows are independent; in the first three fifths of the steps they hold openings of stories, then whole ones.

    Args:
        words: of the vocabulary.
        tasks: numbers; None is all there are.
        seed: of weights and batches.
    """
    phases = Phases((warm_up(CPU_STEPS * 3 // 4, iterations=4), free(max_iter=12, phantom=4)))
    loop = _cpu_loop(CPU_STEPS, lr=3e-3, seed=seed, phases=phases, curriculum=_openings_first(CPU_STEPS))
    model = _small(words, eval_max_iter=100)
    solved = Recipe(label="implicit, 1 layer", tasks=tasks, openings=True, model=model, loop=loop)
    twin, fewer = (cpu_twin(words, tasks, lr=found_rate(n), seed=seed, steps=n) for n in TWINS)
    return [solved, twin, fewer.replace(label=f"{fewer.label}, equal steps")]


def cpu_twin(
    words: int,
    tasks: tuple[int, ...] | None = CPU_TASKS,
    *,
    lr: float,
    steps: int,
    seed: int = 0,
) -> Recipe:
    """Return the explicit twin of `cpu_recipes`.

    Args:
        words: of the vocabulary.
        tasks: numbers; None is all there are.
        lr: highest learning rate.
        steps: optimizer steps, at least 2.
        seed: of weights and batches.
    """
    loop = _cpu_loop(steps, lr=lr, seed=seed, curriculum=_openings_first(steps))
    model = _small(words, implicit=False)
    return Recipe(label="explicit, 1 layer", tasks=tasks, openings=True, model=model, loop=loop)


def found_rate(steps: int) -> float:
    """Return the learning rate of the explicit twin that the stored search found best for so many ``steps``."""
    return read_json(RATES)["best"][str(steps)]


def paper_recipes(
    words: int,
    tasks: tuple[int, ...] | None = None,
    *,
    lr: float = 1e-3,
    rows: int = 128,
    width: int = 256,
    seed: int = 0,
) -> list[Recipe]:
    """Return the paper's training of one implicit layer, and that of its explicit twin.

    15,000 steps: 5,000 with 32 unrolled evaluations and gradient checkpointing, then 10,000 of at most 50 evaluations
    and 6 phantom steps damped by .5; tolerance .03; tests with at most 200 evaluations. The paper tried the rates
    1e-4, 5e-4, 1e-3, 5e-3 and 128 or 256 rows. What it does not tell is chosen here: width, layers and mixer are those
    of its state tracking, the loss is that of the answers, windows of 200 tokens go on from each other.

    Args:
        words: of the vocabulary.
        tasks: numbers; None is all there are.
        lr: highest learning rate.
        rows: windows per step.
        width: of the model.
        seed: of weights and batches.

    Raises:
        ValueError: rows below 1.
    """
    whole("rows", rows, 1)
    sizes = {"d_model": width, "n_layer": 1, "mixer": Mamba2Options(expand=4), "labels": "aligned"}
    solving = {"max_iter": 50, "eval_max_iter": 200, "rtol": 0.03, "phantom_steps": 6, "damping": 0.5}
    loop = LoopOptions(
        steps=PAPER_STEPS,
        curriculum=Curriculum((Stage(length=200, rows=rows),)),
        lr=lr,
        warm_up=500,
        decay="linear",
        carry=True,
        seed=seed,
        read_every=10,
        log_every=50,
        evaluate_every=500,
        checkpoint_every=500,
    )
    phases = Phases(
        (
            warm_up(PAPER_UNROLLED, iterations=PAPER_ITERATIONS, damping=0.5, checkpoint=True),
            free(max_iter=50, phantom=6, damping=0.5, rtol=0.03),
        )
    )
    given = {"tasks": tasks, "carried": True, "test_rows": 128}
    solved = LMOptions(vocab_size=words, **sizes, **solving)
    twin = LMOptions(vocab_size=words, **sizes, implicit=False)
    return [
        Recipe(label="implicit, 1 layer", model=solved, loop=loop.replace(phases=phases), **given),
        Recipe(label="explicit, 1 layer", model=twin, loop=loop, **given),
    ]


def own_recipe(
    words: int,
    tasks: tuple[int, ...] | None,
    *,
    family: str = "implicit",
    layers: int = 1,
    width: int = 64,
    mode: Literal["qm", "lm"] = "qm",
    carried: bool = False,
    length: int = 128,
    rows: int = 16,
    steps: int = 1000,
    unrolled: int | None = None,
    max_iter: int = 12,
    lr: float = 3e-3,
    seed: int = 0,
) -> Recipe:
    """Return a training with settings of one's own.

    Args:
        words: of the vocabulary.
        tasks: numbers; None is all there are.
        family: "implicit" or "explicit".
        layers: blocks.
        width: of the model.
        mode: "qm" or "lm".
        carried: windows go on from each other.
        length: tokens of a window.
        rows: windows per step.
        steps: optimizer steps.
        unrolled: how many of them unroll four evaluations; None is two thirds.
        max_iter: most evaluations of the solves in the others.
        lr: highest learning rate.
        seed: of weights and batches.

    Raises:
        ValueError: a value that breaks its rule.
    """
    require(family in ("implicit", "explicit"), "family", family, "'implicit' or 'explicit'")
    whole("steps", steps, 1)
    model = _small(words, d_model=width, n_layer=layers, implicit=family == "implicit")
    phases = None
    if model.implicit:
        first = steps * 2 // 3 if unrolled is None else unrolled
        solved = free(max_iter=max_iter, phantom=4)
        phases = Phases((warm_up(first, iterations=4), solved)) if first else Phases((solved,))
    stage = Stage(length=length, rows=rows)
    loop = _cpu_loop(steps, lr=lr, seed=seed, phases=phases, curriculum=Curriculum((stage,)), carry=carried)
    label = f"{family}, {layers} layer{'s' * (layers > 1)}"
    return Recipe(label=label, tasks=tasks, mode=mode, carried=carried, model=model, loop=loop)


def _openings_first(steps: int) -> Curriculum:
    return Curriculum((CPU_OPENINGS.replace(steps=steps * 3 // 5), CPU_WINDOWS))


def _small(words: int, **changes: Any) -> LMOptions:
    given = {
        "vocab_size": words,
        "d_model": 64,
        "n_layer": 1,
        "mixer": Mamba2Options(d_state=32, headdim=32),
        "weight_norm": False,
        "labels": "aligned",
    }
    return LMOptions(**{**given, **changes})


def _cpu_loop(steps: int, *, lr: float, seed: int, **more: Any) -> LoopOptions:
    given = {
        "curriculum": Curriculum((CPU_WINDOWS,)),
        "warm_up": min(50, steps - 1),
        "log_every": min(50, steps),
        "evaluate_every": 500,
        "checkpoint_every": 250,
    }
    return LoopOptions(steps=steps, lr=lr, seed=seed, **{**given, **more})
