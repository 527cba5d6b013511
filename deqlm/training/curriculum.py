"""A curriculum as plain data: stages of sequence length and difficulty, and when the next one begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

from deqlm.training.phases import Phase
from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import number, require, whole

__all__ = ["Course", "Curriculum", "Stage"]


@options
class Stage(Options):
    """What is trained on, and until when.

    Args:
        length: tokens per sequence.
        rows: sequences per step.
        p: probability of an easy token, in [0, 1]; the data give it its meaning.
        until: the stage is over when the mean accuracy of its last ``window`` steps is above this, in [0, 1); None
            does not look at the accuracy.
        steps: it is over after this many steps in any case; None sets no limit.
        window: steps of the running accuracy.
        phase: how the stage is solved and differentiated, object or dict; None leaves that to the `Phases` of the
            training.

    Raises:
        ValueError: a value that breaks its rule.

    Examples:
        >>> Stage(length=4, rows=256, until=0.9).p
        0.0
    """

    length: int
    rows: int
    p: float = 0.0
    until: float | None = None
    steps: int | None = None
    window: int = 10
    phase: Phase | None = None

    def __post_init__(self) -> None:
        for name in ("length", "rows", "window"):
            whole(name, getattr(self, name), 1)
        if self.steps is not None:
            whole("steps", self.steps, 1, None)
        number("p", self.p, "in [0, 1]", lambda p: 0 <= p <= 1)
        if self.until is not None:
            number("until", self.until, "in [0, 1)", lambda a: 0 <= a < 1)
        if isinstance(self.phase, Mapping):
            object.__setattr__(self, "phase", Phase.from_dict(self.phase))
        fits = self.phase is None or (isinstance(self.phase, Phase) and self.phase.steps is None)
        require(fits, "phase", self.phase, "a Phase without steps, which the stage counts")


@options(kw_only=False)
class Curriculum(Options):
    """Stages one after another; when the last one is over, so is the training.

    Args:
        stages: in order; every stage but the last needs ``until`` or ``steps``.

    Raises:
        ValueError: no stage, a stage that would never end before the last, or a phase in some stages only.

    Examples:
        >>> course = Course(Curriculum((Stage(length=2, rows=8, until=0.9, window=2), Stage(length=4, rows=4))))
        >>> for accuracy in (0.5, 0.95, 0.97):
        ...     course.record(accuracy)
        >>> course.advance(), course.stage.length
        (True, 4)
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        made = tuple(Stage.from_dict(s) if isinstance(s, Mapping) else s for s in self.stages)
        object.__setattr__(self, "stages", made)
        require(len(made) > 0, "stages", made, "at least one Stage")
        for stage in made:
            require(isinstance(stage, Stage), "stages", stage, "objects of Stage, or dicts of their fields")
        endless = [i for i, stage in enumerate(made[:-1]) if stage.until is None and stage.steps is None]
        require(not endless, "stages without until and steps", endless, "none but the last")
        with_phase = [i for i, stage in enumerate(made) if stage.phase is not None]
        require(len(with_phase) in (0, len(made)), "stages with a phase", with_phase, "all or none")

    @property
    def has_phases(self) -> bool:
        """Whether the stages say how to solve."""
        return self.stages[0].phase is not None

    def without_phases(self) -> Curriculum:
        """Return the same stages for a model that solves nothing."""
        return Curriculum(tuple(stage.replace(phase=None) for stage in self.stages))


class Course:
    """Where a training stands in its curriculum; the one part of it that depends on what was measured.

    Args:
        curriculum: the stages.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        self.index = 0
        self.ended: Literal["target", "steps"] | None = None
        self._begin()

    @property
    def stage(self) -> Stage:
        """The stage that is under way, or the last one."""
        return self.curriculum.stages[self.index]

    @property
    def running(self) -> float:
        """Mean accuracy of the last ``window`` steps of the stage, NaN before the first."""
        return sum(self._accuracies) / len(self._accuracies) if self._accuracies else float("nan")

    def record(self, accuracy: float) -> None:
        """Count one step of the stage."""
        self._steps += 1
        self._accuracies.append(accuracy)

    def advance(self) -> bool:
        """Go on to the next stage if this one is over, and say whether that happened.

        Behind the last stage, ``ended`` says by what: "target" (its accuracy) or "steps".
        """
        stage = self.stage
        full = len(self._accuracies) == stage.window
        reached = stage.until is not None and full and self.running > stage.until
        if not reached and (stage.steps is None or self._steps < stage.steps):
            return False
        if self.index + 1 == len(self.curriculum.stages):
            self.ended = "target" if reached else "steps"
            return False
        self.index += 1
        self._begin()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes: plain data."""
        return {"index": self.index, "steps": self._steps, "accuracies": list(self._accuracies), "ended": self.ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the training stood that saved ``state``.

        Raises:
            ValueError: a stage that this curriculum does not have.
        """
        count = len(self.curriculum.stages)
        require(0 <= state["index"] < count, "index of the stage", state["index"], f"below {count}")
        self.index, self.ended = state["index"], state["ended"]
        self._begin()
        self._steps = state["steps"]
        self._accuracies.extend(state["accuracies"])

    def _begin(self) -> None:
        self._steps = 0
        self._accuracies: deque[float] = deque(maxlen=self.stage.window)
