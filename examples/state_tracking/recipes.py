"""The recipes that fit on a CPU, as plain data: the demo with its baselines, and a general one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

from deqlm.models import AttentionOptions, LMOptions, Mamba2Options
from deqlm.sequence.modes import Chunked
from deqlm.training import Curriculum
from deqlm_solvers.core.checks import suggest
from examples.loop import LoopOptions
from examples.loop.results import read_json
from examples.state_tracking.data import word_problem
from examples.state_tracking.recipe import Recipe, Test, by_length

__all__ = [
    "DEMO",
    "LENGTHS",
    "RATES",
    "TWIN_STEPS",
    "Start",
    "demo_recipes",
    "explicit",
    "found_rate",
    "general",
    "implicit",
    "tests",
    "transformer",
    "twin",
]

RATES = Path(__file__).with_name("rates.json")
"""What the search of the baselines' learning rates tried and found; ``search`` writes it."""

DEMO = {"S3": 600, "Z2": 300}
"""Groups of the demo, and the steps of its implicit model."""

TWIN_STEPS = {"S3": {1: 7, 2: 5}, "Z2": {1: 10, 2: 6}}
"""Steps of an explicit model per step of the implicit one, so that it has more time in all; by group and layers."""

SHORTER = (2, 4, 8)
"""Lengths before the last one of a curriculum."""

LENGTHS = (*SHORTER, 16, 32, 64, 128, 256)
"""What the demo and ``full`` test: lengths that were trained, and up to sixteen times as long."""

Start = Literal["curriculum", "direct"]
"""Whether a baseline is trained on growing lengths or on the full one from the first step."""


def implicit(problem: str, *, width: int = 32, **changes: Any) -> LMOptions:
    """Return one implicit Mamba2 layer for a problem."""
    given = {
        "vocab_size": len(word_problem(problem)),
        "d_model": width,
        "n_layer": 1,
        "mixer": Mamba2Options(d_state=16, headdim=32),
        "weight_norm": False,
        "labels": "aligned",
    }
    return LMOptions(**{**given, **changes})


def explicit(problem: str, layers: int, *, width: int = 32) -> LMOptions:
    """Return the explicit twin: so many layers of the same block."""
    return implicit(problem, width=width, n_layer=layers, implicit=False)


def transformer(problem: str, *, width: int = 64, window: int | None = None, **changes: Any) -> LMOptions:
    """Return one implicit Llama layer for a problem, with heads of width 16 and a row for a start token.

    Args:
        problem: what to learn.
        width: of the model.
        window: tokens that a token sees, itself included; None is all before it.
        changes: other options.
    """
    mixer = AttentionOptions(n_head=max(1, width // 16), sliding_window=window)
    rows = len(word_problem(problem)) + 1
    return implicit(problem, width=width, **{"mixer": mixer, "d_hidden": 2 * width, "vocab_size": rows, **changes})


def tests(lengths: tuple[int, ...], **more: Any) -> tuple[Test, ...]:
    """Return one test per length, on fewer sequences above 128 tokens; implicit models are solved in chunks of 16."""

    def one(length: int) -> Test:
        rows = 256 if length <= 128 else 64
        return Test(**{"length": length, "rows": rows, "mode": Chunked(16), "max_iter": 100, **more})

    return tuple(one(length) for length in lengths)


def general(
    problem: str,
    *,
    model: LMOptions,
    label: str,
    steps: int,
    length: int = 16,
    tokens: int = 512,
    lr: float = 3e-3,
    p: float = 0.0,
    max_iter: int = 24,
    until: float | tuple[float, ...] = 0.9,
    target: float | None = None,
    seed: int = 0,
    times: tuple[int, ...] = (1, 2, 4, 8, 16),
    start: bool = False,
    **more: Any,
) -> Recipe:
    """Return a training on lengths 2, 4, 8, ... up to ``length``, and tests at multiples of it.

    Args:
        problem: what to learn.
        model: with what.
        label: name in tables and plots.
        steps: optimizer steps; the rate decays to zero with them.
        length: longest length that is trained.
        tokens: per step.
        lr: highest learning rate.
        p: probability of an easy token, in training and tests.
        max_iter: most evaluations of a training solve at the longest length.
        until: accuracies that end the shorter lengths, as for `by_length`.
        target: accuracy at the longest length that ends the training; None takes all steps.
        seed: of weights and batches.
        times: tested lengths over ``length``.
        start: a start token stands before every sequence, for which the model needs a row.
        more: options of the loop.
    """
    lengths = tuple(2**k for k in range(1, 20) if 2**k < length)
    solving = {"max_iter": max_iter} if model.implicit else {"most": max(1, steps // (2 * max(1, len(lengths))))}
    curriculum = by_length((*lengths, length), tokens=tokens, p=p, until=until, target=target, start=start, **solving)
    loop = LoopOptions(steps=steps, curriculum=curriculum, lr=lr, seed=seed, **{"warm_up": min(50, steps - 1), **more})
    tested = tests(tuple(length * n for n in times), p=p)
    return Recipe(label=label, problem=problem, model=model, loop=loop, tests=tested, start=start)


def demo_recipes(group: str, seed: int = 0) -> list[Recipe]:
    """Return the three recipes of the demo: one implicit layer, and one and two explicit ones at their best rates.

    Raises:
        KeyError: a group that the demo has no recipe for.
    """
    if group not in DEMO:
        raise KeyError(f"the demo knows no group {group!r}: {suggest(group, DEMO)}; for others see `train --help`")
    curriculum = by_length((*SHORTER, 16), tokens=512, max_iter=24)
    loop = LoopOptions(steps=DEMO[group], curriculum=curriculum, lr=3e-3, warm_up=20, seed=seed)
    solved = Recipe(label="implicit, 1 layer", problem=group, model=implicit(group), loop=loop, tests=tests(LENGTHS))
    twins = []
    for layers in (1, 2):
        best = found_rate(group, layers)
        twins.append(twin(group, layers, lr=best["lr"], start=best["start"], seed=seed))
    return [solved, *twins]


def twin(group: str, layers: int, *, lr: float, start: Start, seed: int = 0) -> Recipe:
    """Return an explicit model of the demo, with the same tokens per step as the implicit one and more steps.

    Args:
        group: of the demo.
        layers: of the same block.
        lr: highest learning rate.
        start: on growing lengths or not.
        seed: of weights and batches.
    """
    steps = TWIN_STEPS[group][layers] * DEMO[group]
    loop = LoopOptions(steps=steps, curriculum=_course(start, steps), lr=lr, seed=seed)
    return Recipe(
        label=f"explicit, {layers} layer{'s' * (layers > 1)}",
        problem=group,
        model=explicit(group, layers),
        loop=loop,
        tests=tests(LENGTHS),
    )


def _course(start: Start, steps: int) -> Curriculum:
    lengths = (*SHORTER, 16) if start == "curriculum" else (16,)
    # half of the steps are left for the full length, however badly the shorter ones go
    return by_length(lengths, tokens=512, most=max(1, steps // (2 * len(SHORTER))))


@cache
def _rates() -> dict[str, Any]:
    return read_json(RATES)


def found_rate(group: str, layers: int) -> dict[str, Any]:
    """Return the best learning rate and start of an explicit model, as the stored search has them."""
    return _rates()["best"][group][str(layers)]
