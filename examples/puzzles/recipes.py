"""The trainings of the commands, and the models that the layer is compared with."""

from __future__ import annotations

from examples.puzzles.data import Draw
from examples.puzzles.model import Shape
from examples.puzzles.recipe import Recipe, recipe

__all__ = ["DEMO", "IMPLICIT", "NINE", "ONCE", "SIX", "demo", "maze", "nine", "six"]

DEMO = Draw(problem="4x4", train=25, valid=200, test=300)
"""Of the 36 puzzles that differ up to symmetry, 25 to learn from, 4 to choose by and 7 to test."""
SIX = Draw(problem="6x6", train=2000, valid=300, test=500)
NINE = Draw(problem="9x9", train=1000, valid=100, test=1000)

IMPLICIT = "one layer, converged"
ONCE = "the layer once"


def demo(seed: int = 0, *, steps: int = 1300) -> list[Recipe]:
    """Return the layer that converges on 4x4, and the same layer used once, with more time."""
    once = Shape(least=1, most=1, start="zero")
    return [
        recipe(DEMO, label=IMPLICIT, steps=steps, seed=seed),
        recipe(DEMO, label=ONCE, steps=6 * steps, shape=once, seed=seed),
    ]


def six(seed: int = 0, *, steps: int = 2000) -> Recipe:
    """Return the training on 6x6."""
    return recipe(SIX, label=IMPLICIT, steps=steps, shape=Shape(most=16), seed=seed, checkpoint_every=200)


def maze(side: int = 5, seed: int = 0, *, steps: int = 1000) -> Recipe:
    """Return the training on mazes."""
    draw = Draw(problem=f"maze{side}", train=4000, valid=300, test=500)
    return recipe(draw, label=IMPLICIT, steps=steps, shape=Shape(most=16), seed=seed, checkpoint_every=200)


def nine(draw: Draw = NINE, seed: int = 0, *, steps: int = 60_000, batch: int = 256) -> Recipe:
    """Return the training on 9x9 for one GPU: a wider layer, more evaluations, and Adam's usual small rate."""
    shape = Shape(width=256, heads=8, hidden=1024, least=8, most=24)
    return recipe(draw, label=IMPLICIT, steps=steps, shape=shape, batch=batch, lr=3e-4, seed=seed, checkpoint_every=500)
