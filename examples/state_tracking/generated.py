"""Groups whose tokens are a few generators, as the papers test them: (A5, 2, 6, 12), (S5, 4, 8, 32)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqlm_solvers.core.checks import whole
from examples.loop import LoopOptions
from examples.loop.command import distinct
from examples.loop.results import write_json
from examples.state_tracking.data import word_problem
from examples.state_tracking.forgetting import ForgettingMamba2Options
from examples.state_tracking.jobs import run_jobs
from examples.state_tracking.recipe import Recipe, by_length
from examples.state_tracking.recipes import implicit, tests

__all__ = ["CONTRACT", "PROBLEMS", "groups", "recipe_of"]

STEPS = {"A5:2": 1000, "A5:6": 1500, "A5:12": 2000, "S5:4": 1500, "S5:8": 2000, "S5:32": 6000}
"""Of the optimizer, by problem: a larger table of products takes longer to learn."""
PROBLEMS = tuple(STEPS)
TRAINED = 40
CHUNK = 8
LENGTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, TRAINED)
TESTED = (40, 64, 128, 256)

CONTRACT = {
    "about": "the running product of elements drawn evenly from a set of generators, labels at every token",
    "source": "arXiv 2509.22284, its table of groups",
    "revision": "version 3",
    "fidelity": "reconstructed",
    "differs": "which generators were drawn is not printed there, nor where the labels stand",
    "trained": [2, TRAINED],
    "tested": list(TESTED),
}
"""What the results are results of; stored with them."""


def recipe_of(name: str, *, seed: int = 0, steps: int | None = None) -> Recipe:
    """Return the training of one implicit Mamba2 layer of width 64, which must forget, on a set of generators.

    Args:
        name: of a word problem with generators, such as "S5:32".
        seed: of weights and batches.
        steps: of the optimizer; None is that of `STEPS`, or its largest for a problem that is not there.

    Raises:
        ValueError: no such problem, or one without generators.
    """
    problem = word_problem(name)
    if problem.generators is None:
        raise ValueError(f'problems must have a number of generators, as in "{name}:4", got {name!r}')
    loop = LoopOptions(
        steps=STEPS.get(name, max(STEPS.values())) if steps is None else steps,
        curriculum=by_length(LENGTHS, tokens=1024, until=0.95, max_iter=2 * CHUNK + 2, spare=2),
        lr=3e-3,
        seed=seed,
        log_every=25,
        checkpoint_every=100,
    )
    return Recipe(
        label="implicit, 1 layer, width 64, forgetting",
        problem=name,
        model=implicit(name, width=64, mixer=ForgettingMamba2Options()),
        loop=loop,
        # which settings are good was learnt on all elements of A5 and S5, on other sequences
        tests=tests(TESTED, seed=1),
        chunk=CHUNK,
    )


def groups(
    problems: Sequence[str],
    out: Path,
    *,
    seeds: int = 1,
    steps: int | None = None,
    workers: int = 2,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train on every problem with every seed, and store all of it as ``out``/groups.json.

    Args:
        problems: names with generators.
        out: folder.
        seeds: 0 to ``seeds`` - 1.
        steps: of each training; None is that of `STEPS`.
        workers: processes.
        progress: as for `run_jobs`.
    """
    whole("seeds", seeds, 1)
    distinct("problems", problems)
    recipes = [recipe_of(name, seed=seed, steps=steps) for name in problems for seed in range(seeds)]
    jobs = [(recipe, out / f"{recipe.problem.replace(':', '-')}-{recipe.loop.seed}") for recipe in recipes]
    data = {"contract": CONTRACT, "results": run_jobs(jobs, workers=workers, progress=progress)}
    write_json(out / "groups.json", data)
    return data
