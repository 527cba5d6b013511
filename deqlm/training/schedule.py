"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import number, require, whole

__all__ = ["Schedule"]

CURVES = ("constant", "linear", "cosine", "square_root")


@options
class Schedule(Options):
    """Linear warm-up, then a constant rate or a decay; nothing to save, since the step says the rate.

    Args:
        lr: highest rate, > 0.
        warm_up: steps of the warm-up, of which step s (from 0) has the rate ``lr * (s + 1) / warm_up``.
        decay: "constant", "linear", "cosine" or "square_root" (1 - sqrt(t)), from ``begin`` to ``steps``.
        steps: step at which the rate has come down to ``floor * lr`` and stays there; None where it is constant.
        floor: fraction of ``lr`` in [0, 1].
        begin: step at which the rate begins to decay, >= ``warm_up``; None is the end of the warm-up.

    Raises:
        ValueError: a value that breaks its rule, or one that would be ignored.

    Examples:
        >>> rate = Schedule(lr=0.1, warm_up=2, decay="cosine", steps=6)
        >>> [round(rate.at(step), 4) for step in range(8)]
        [0.05, 0.1, 0.1, 0.0854, 0.05, 0.0146, 0.0, 0.0]
    """

    lr: float
    warm_up: int = 0
    decay: Literal["constant", "linear", "cosine", "square_root"] = "constant"
    steps: int | None = None
    floor: float = 0.0
    begin: int | None = None

    def __post_init__(self) -> None:
        number("lr", self.lr, "> 0 and finite", lambda rate: 0 < rate < math.inf)
        whole("warm_up", self.warm_up, 0, None)
        require(self.decay in CURVES, "decay", self.decay, "'constant', 'linear', 'cosine' or 'square_root'")
        number("floor", self.floor, "in [0, 1]", lambda part: 0 <= part <= 1)
        if self.decay == "constant":
            require(self.steps is None, "steps", self.steps, "None where decay='constant'")
            require(self.floor == 0, "floor", self.floor, "0 where decay='constant'")
            require(self.begin is None, "begin", self.begin, "None where decay='constant'")
        else:
            whole("steps", self.steps, 1, None)
            more = self.steps is not None and self.steps > self.warm_up
            require(more, "steps", self.steps, f"> warm_up={self.warm_up} where decay={self.decay!r}")
            if self.begin is not None:
                whole("begin", self.begin, self.warm_up, None)
                require(self.begin < (self.steps or 0), "begin", self.begin, f"< steps={self.steps}")

    def at(self, step: int) -> float:
        """Return the rate of the optimizer step number ``step``, from 0."""
        whole("step", step, 0, None)
        if step < self.warm_up:
            return self.lr * (step + 1) / self.warm_up
        if self.steps is None:
            return self.lr
        begin = self.warm_up if self.begin is None else self.begin
        done = min(1.0, max(0.0, (step - begin) / (self.steps - begin)))
        left = {"linear": 1 - done, "square_root": 1 - math.sqrt(done)}.get(
            self.decay, 0.5 * (1 + math.cos(math.pi * done))
        )
        return self.lr * (self.floor + (1 - self.floor) * left)
