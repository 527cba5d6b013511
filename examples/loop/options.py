"""The settings of a training as plain data."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Literal

from deqlm.training import Curriculum, Phases, Schedule
from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import number, require, whole
from examples.loop.guard import Guard

__all__ = ["LoopOptions"]

BOOKKEEPING = ("log_every", "evaluate_every", "checkpoint_every", "keep", "time_limit", "clock")
"""What changes neither weights nor losses."""


@options
class LoopOptions(Options):
    """How to train.

    Args:
        steps: most optimizer steps; the end of a decaying rate.
        curriculum: stages, object or dict. The last one's ``until`` is the accuracy at which training stops early.
        phases: how to solve at which step, object or dict; None where the stages say it or nothing is solved.
        lr: highest learning rate.
        warm_up: steps until it is reached.
        decay: "constant", "linear" or "cosine".
        betas: of AdamW.
        weight_decay: of matrices.
        clip: largest norm of the gradient; None does not clip.
        guard: what to do when the training falls back to guessing, object or dict; None does nothing.
        carry: hand the state behind each batch to the next one, if that is not fresh; gradients end between them. For
            an unrolled gradient this takes a second solve, without grad.
        seed: of the batches, and of what the model draws from torch's generators.
        read_every: steps between two looks at losses and accuracies, when a stage or the training can end. On a GPU a
            look waits for the device.
        log_every: steps per record of the log, a multiple of ``read_every``.
        evaluate_every: steps between calls of the task's ``evaluate``, which is also called at the end; None at the
            end only. A multiple of ``read_every``, as the next one.
        checkpoint_every: steps between checkpoints; None writes one at the end only.
        keep: newest checkpoints that stay.
        time_limit: seconds of training, earlier runs included, evaluation and checkpoints not; None sets none.
        clock: whether these are "wall" or "cpu" seconds of the process.

    Raises:
        ValueError, TypeError: a value that breaks its rule, or an option that is not known.
    """

    steps: int
    curriculum: Curriculum
    phases: Phases | None = None
    lr: float = 3e-3
    warm_up: int = 50
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    guard: Guard | None = None
    carry: bool = False
    seed: int = 0
    read_every: int = 1
    log_every: int = 10
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    time_limit: float | None = None
    clock: Literal["wall", "cpu"] = "wall"

    def __post_init__(self) -> None:
        for name, kind in (("curriculum", Curriculum), ("phases", Phases), ("guard", Guard)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                value = kind.from_dict(value)
                object.__setattr__(self, name, value)
            ok = isinstance(value, kind) or (name != "curriculum" and value is None)
            require(ok, name, value, f"a {kind.__name__} or a dict of its fields")
        twice = self.phases is not None and self.curriculum.has_phases
        require(not twice, "phases", self.phases, "None where the stages of the curriculum have phases")
        for name in ("steps", "read_every", "log_every", "keep"):
            whole(name, getattr(self, name), 1, None)
        whole("seed", self.seed, 0, sys.maxsize)
        for name in ("log_every", "evaluate_every", "checkpoint_every"):
            every = getattr(self, name)
            if every is not None:
                whole(name, every, 1, None)
                require(every % self.read_every == 0, name, every, f"a multiple of read_every={self.read_every}")
        object.__setattr__(self, "betas", tuple(self.betas))
        require(len(self.betas) == 2, "betas", self.betas, "two numbers")
        for beta in self.betas:
            number("betas", beta, "in [0, 1)", lambda b: 0 <= b < 1)
        number("weight_decay", self.weight_decay, ">= 0 and finite", lambda d: 0 <= d < math.inf)
        if self.clip is not None:
            number("clip", self.clip, "> 0 and finite", lambda c: 0 < c < math.inf)
        if self.time_limit is not None:
            number("time_limit", self.time_limit, "> 0", lambda t: t > 0)
        require(isinstance(self.carry, bool), "carry", self.carry, "True or False")
        require(self.clock in ("wall", "cpu"), "clock", self.clock, "'wall' or 'cpu'")
        _ = self.schedule

    @property
    def schedule(self) -> Schedule:
        """The learning rate."""
        steps = None if self.decay == "constant" else self.steps
        return Schedule(lr=self.lr, warm_up=self.warm_up, decay=self.decay, steps=steps)

    def identity(self) -> dict[str, Any]:
        """Return the options that the numbers depend on; a checkpoint goes on with equal ones only.

        ``steps`` is one of them where the rate decays.
        """
        left_out = {*BOOKKEEPING, "steps"} if self.decay == "constant" else set(BOOKKEEPING)
        return {name: value for name, value in self.to_dict().items() if name not in left_out}
