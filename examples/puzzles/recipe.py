"""One training of a model on puzzles as plain data."""

from __future__ import annotations

from collections.abc import Mapping

from deqlm.training import Curriculum, Stage
from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import require
from examples.loop import LoopOptions
from examples.puzzles.data import SPLITS, Draw, Split, problem_named
from examples.puzzles.model import Shape

__all__ = ["Recipe", "folder_of", "recipe"]


@options
class Recipe(Options):
    """A training, and what is looked at behind it.

    Args:
        label: what tables and plots call it.
        draw: the puzzles.
        shape: the model.
        loop: how it is trained.
        split: whose puzzles are looked at: "test", or "valid" where a choice is made.

    Raises:
        ValueError, TypeError: a value that breaks its rule.
    """

    label: str
    draw: Draw
    shape: Shape
    loop: LoopOptions
    split: Split = "test"

    def __post_init__(self) -> None:
        for name, kind in (("draw", Draw), ("shape", Shape), ("loop", LoopOptions)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind.from_dict(value))
        require(self.split in SPLITS, "split", self.split, f"one of {', '.join(SPLITS)}")


def folder_of(one: Recipe) -> str:
    """Return the name of the folder of a recipe: its label and its seed."""
    return f"{one.label.replace(', ', '-').replace(' ', '_')}-{one.loop.seed}"


def recipe(
    draw: Draw,
    *,
    label: str,
    steps: int,
    shape: Shape | None = None,
    batch: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
    split: Split = "test",
    checkpoint_every: int | None = None,
) -> Recipe:
    """Return a training whose rate decays to zero as a cosine over its steps.

    Args:
        draw: the puzzles.
        label: what tables call it.
        steps: of the optimizer.
        shape: of the model; None is that of `Shape` as it stands.
        batch: puzzles per step.
        lr: highest learning rate.
        seed: of weights, batches, depths and starts.
        split: that is looked at behind it.
        checkpoint_every: steps between checkpoints; None writes one at the end.
    """
    cells = len(problem_named(draw.problem).places)
    loop = LoopOptions(
        steps=steps,
        curriculum=Curriculum((Stage(length=cells, rows=batch),)),
        lr=lr,
        warm_up=min(50, steps // 2),
        seed=seed,
        log_every=10,
        checkpoint_every=checkpoint_every,
        clock="cpu",
    )
    return Recipe(label=label, draw=draw, shape=Shape() if shape is None else shape, loop=loop, split=split)
