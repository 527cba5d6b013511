"""One experiment as plain data: stories, windows, model, training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from deqlm.models import LMOptions
from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import require, whole
from examples.catbabi.data import Corpus
from examples.loop import LoopOptions

__all__ = ["Recipe"]


@options
class Recipe(Options):
    """One training and how it is tested.

    Rows and length of the windows are those of the stages of the loop.

    Args:
        label: what tables and pictures call it.
        tasks: numbers of the tasks, in order; None is all that the folder holds.
        mode: "qm" trains answers, "lm" every token. Tests ask for answers in either.
        carried: windows go on from each other, and the state goes with them, as in the loop's option ``carry``; False
            packs whole stories into independent windows.
        openings: cut each story of the training to what fits a window, up to an answer, so that a first stage of short
            windows holds the beginnings of all stories. Windows must be independent.
        model: what is trained, with one row per word of the vocabulary.
        loop: how, with one stage; with ``openings`` there can be several.
        test_rows: rows of a test, at least 1.
        test_length: tokens of its windows; None is that of the last stage.

    Raises:
        ValueError, TypeError: a value that breaks its rule, or options that contradict each other.
    """

    label: str
    tasks: tuple[int, ...] | None
    mode: Literal["qm", "lm"] = "qm"
    carried: bool = False
    openings: bool = False
    model: LMOptions
    loop: LoopOptions
    test_rows: int = 32
    test_length: int | None = None

    def __post_init__(self) -> None:
        for name, kind in (("model", LMOptions), ("loop", LoopOptions)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind.from_dict(value))
        if self.tasks is not None:
            object.__setattr__(self, "tasks", tuple(sorted(set(self.tasks))))
            require(len(self.tasks) > 0, "tasks", self.tasks, "at least one task, or None for all")
        require(self.mode in ("qm", "lm"), "mode", self.mode, "'qm' or 'lm'")
        require(isinstance(self.carried, bool), "carried", self.carried, "True or False")
        require(self.loop.carry == self.carried, "carry of the loop", self.loop.carry, f"carried={self.carried}")
        require(isinstance(self.openings, bool), "openings", self.openings, "True or False")
        require(not (self.openings and self.carried), "openings", self.openings, "False where carried=True")
        stages = self.loop.curriculum.stages
        rule = "1 where openings=False: windows of whole stories have one length"
        require(self.openings or len(stages) == 1, "stages", len(stages), rule)
        require(self.model.labels == "aligned", "labels of the model", self.model.labels, "'aligned', as the targets")
        whole("test_rows", self.test_rows, 1)
        if self.test_length is not None:
            whole("test_length", self.test_length, 1)

    @property
    def length(self) -> int:
        """Tokens of a window in the last stage of the training."""
        return self.loop.curriculum.stages[-1].length

    @property
    def rows(self) -> int:
        """Windows per step of that stage."""
        return self.loop.curriculum.stages[-1].rows

    def check_corpus(self, corpus: Corpus) -> None:
        """Raise unless the model has a row for every word of a corpus, and no other.

        Raises:
            ValueError: it has more or fewer.
        """
        corpus.vocabulary.check_model(self.model.vocab_size)

    def with_loop(self, **changes: Any) -> Recipe:
        """Return the same recipe with some options of its training changed."""
        return self.replace(loop=self.loop.replace(**changes))
