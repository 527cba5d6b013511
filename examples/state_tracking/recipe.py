"""One experiment as plain data: problem, model, training, tests."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from deqlm.models import LMOptions
from deqlm.sequence.modes import MODES, Chunked, Mode
from deqlm.training import Curriculum, Stage, free, warm_up
from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import number, require, whole
from examples.loop import LoopOptions
from examples.state_tracking import forgetting  # noqa: F401  registers a mixer that recipes name
from examples.state_tracking.data import word_problem

__all__ = ["Recipe", "Test", "by_length"]


@options
class Test(Options):
    """One look at a trained model.

    Args:
        length: tokens per sequence.
        rows: sequences.
        batch: of them at a time.
        p: probability of an easy token.
        mode: how an implicit model is solved, object or dict; an explicit one is evaluated in one go.
        max_iter: most evaluations per solve; None is the model's.
        rtol: tolerance; None is the model's.
        seed: of the sequences, which no training sees.

    Raises:
        ValueError, TypeError: a value that breaks its rule.
    """

    __test__ = False  # it is no test of pytest's

    length: int
    rows: int = 512
    batch: int = 512
    p: float = 0.0
    mode: Mode = Chunked(16)
    max_iter: int | None = None
    rtol: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "rows", "batch"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed, 0, sys.maxsize)
        number("p", self.p, "in [0, 1]", lambda p: 0 <= p <= 1)
        object.__setattr__(self, "mode", MODES.make(self.mode))
        if self.max_iter is not None:
            whole("max_iter", self.max_iter, 1)
        if self.rtol is not None:
            number("rtol", self.rtol, "> 0", lambda t: t > 0)


@options
class Recipe(Options):
    """One training and what is looked at behind it.

    Args:
        label: what tables and plots call it.
        problem: as `examples.state_tracking.data.word_problem` reads it.
        model: what is trained.
        loop: how.
        tests: what is measured.
        watched: (length, p) pairs looked at while it trains.
        start: a token of its own stands before every sequence, and is not counted in its length. An implicit
            transformer with rotary positions needs it: attention over equal tokens returns their one value, so without
            it "x x x" is answered as "x" is.
        chunk: tokens that a training solve takes at a time where it takes fewer evaluations so; the gradient is that of
            all tokens. None solves all of them at once.

    Raises:
        ValueError, TypeError: a value that breaks its rule, or a model without a row for every token.
    """

    label: str
    problem: str
    model: LMOptions
    loop: LoopOptions
    tests: tuple[Test, ...]
    watched: tuple[tuple[int, float], ...] = ()
    start: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name, kind in (("model", LMOptions), ("loop", LoopOptions)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind.from_dict(value))
        made = tuple(Test.from_dict(t) if isinstance(t, Mapping) else t for t in self.tests)
        object.__setattr__(self, "tests", made)
        object.__setattr__(self, "watched", tuple((int(length), float(p)) for length, p in self.watched))
        require(isinstance(self.start, bool), "start", self.start, "True or False")
        if self.chunk is not None:
            whole("chunk", self.chunk, 1)
            require(self.model.implicit, "chunk", self.chunk, "None for an explicit model, which solves nothing")
        tokens = len(word_problem(self.problem)) + self.start
        what = f"the tokens of {self.problem}" + " and a start token" * self.start
        require(self.model.rows >= tokens, "vocab_size", self.model.rows, f">= {tokens}, {what}")

    @property
    def length(self) -> int:
        """Longest sequence of the training."""
        return max(stage.length for stage in self.loop.curriculum.stages)

    def with_seed(self, seed: int) -> Recipe:
        """Return the same recipe for another seed of weights and batches."""
        return self.replace(loop=self.loop.replace(seed=seed))

    def with_loop(self, **changes: Any) -> Recipe:
        """Return the same recipe with some options of its training changed."""
        return self.replace(loop=self.loop.replace(**changes))


def by_length(
    lengths: tuple[int, ...],
    *,
    tokens: int = 1024,
    p: float = 0.0,
    until: float | tuple[float, ...] = 0.9,
    target: float | None = None,
    most: int | None = None,
    unroll: int = 8,
    max_iter: int | None = None,
    phantom: int = 6,
    damping: float = 1.0,
    start: bool = False,
    spare: int = 0,
) -> Curriculum:
    """Return stages of growing length, each until the running accuracy of the last token is above ``until``.

    Short stages of an implicit model are unrolled, one undamped evaluation per token; the others are solved.

    Args:
        lengths: of the stages.
        tokens: per step.
        p: probability of an easy token.
        until: accuracy that ends a stage but the last, one for all of them or one for each.
        target: accuracy of the last stage that ends the training; None trains for all its steps.
        most: steps that end a stage but the last in any case.
        unroll: longest length that is unrolled; the last one is solved in any case.
        max_iter: most evaluations of a solve; None for a model that solves nothing.
        phantom: its phantom steps.
        damping: of these.
        start: a start token takes part, so that unrolled stages have one evaluation more.
        spare: evaluations that unrolled stages have beside one per token, so that what they learn is a fixed point.

    Raises:
        ValueError: a number of ``until`` that is not that of the stages but the last.
    """
    earlier = len(lengths) - 1
    ends = (until,) * earlier if isinstance(until, int | float) else tuple(until)
    require(len(ends) == earlier, "until", until, f"a number, or {earlier}, one for each stage but the last")
    stages = []
    for length, accuracy in zip(lengths, (*ends, target), strict=True):
        last = length == lengths[-1]
        phase = None
        if max_iter is not None:
            solved = free(max_iter=max_iter, phantom=phantom, damping=damping)
            phase = solved if last or length > unroll else warm_up(iterations=length + start + spare, damping=1.0)
        limit = None if last else most
        rows = max(1, tokens // length)
        stages.append(Stage(length=length, rows=rows, p=p, until=accuracy, steps=limit, phase=phase))
    return Curriculum(tuple(stages))
