"""What a task is, as one object: where it comes from, how true this copy is, what goes in and what is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deqlm_solvers.core.checks import require, suggest, whole
from examples.loop import IGNORED
from examples.state_tracking.data import Vocabulary
from examples.state_tracking.data.problem import SPLITS

__all__ = ["Contract"]

SHORTEST = 2
"""Tokens of the shortest sequence that any task can be asked for."""

Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]
"""Generator, sequences, tokens -> tokens (B, L) and answers, int64: (B,), or (B, L) where several tokens have one."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """One task with its protocol; it is printed and stored with every result.

    Train, validation and test sequences come from three streams of random numbers; nothing is kept apart by content, as
    in the source.

    Args:
        name: of the task.
        about: what is asked, a line.
        source: repository and file that define it.
        revision: of that file.
        fidelity: "exact" where sequences and labels have the distribution that the source at this revision draws from,
            "reconstructed" where a text was all there was.
        inputs: names of the tokens.
        answers: names of what may be asked for.
        trained: shortest and longest sequence in training.
        tested: in tests.
        sample: draws sequences and answers.
        label: where answers are asked for, in words.
        tokens: how many tokens a sequence has that was asked for with a length; the source of some tasks adds one.

    Examples:
        >>> from examples.state_tracking.automata.tasks import contract
        >>> parity = contract("parity")
        >>> ids, answers = parity.draw(2, 5, seed=1)
        >>> bool((answers == ids.sum(1) % 2).all())
        True
    """

    name: str
    about: str
    source: str
    revision: str
    fidelity: Literal["exact", "reconstructed"]
    inputs: tuple[str, ...]
    answers: tuple[str, ...]
    sample: Draw
    label: str = "last token"
    trained: tuple[int, int] = (3, 40)
    tested: tuple[int, int] = (40, 256)
    tokens: Callable[[int], int] = lambda length: length

    def __post_init__(self) -> None:
        require(self.fidelity in ("exact", "reconstructed"), "fidelity", self.fidelity, "'exact' or 'reconstructed'")
        for name in ("trained", "tested"):
            low, high = getattr(self, name)
            whole(f"shortest length of {name}", low, SHORTEST)
            require(low <= high, name, (low, high), "shortest length first")

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the answers."""
        return 1 / len(self.answers)

    @property
    def rows(self) -> int:
        """Rows that an embedding that is tied to its head needs."""
        return max(len(self.inputs), len(self.answers))

    @property
    def vocabulary(self) -> Vocabulary:
        """Names of the tokens."""
        return Vocabulary(self.inputs)

    def draw(
        self, rows: int, length: int, *, seed: int = 0, step: int = 0, split: str = "train"
    ) -> tuple[Tensor, Tensor]:
        """Return sequences (B, L) and answers, (B,) at their last tokens or (B, L), int64: a function of the arguments.

        Raises:
            ValueError: rows below 1, a length below 2, a negative number, an unknown split.
        """
        whole("rows", rows, 1)
        whole("length", length, SHORTEST)
        for name, value in (("seed", seed), ("step", step)):
            whole(name, value, 0, None)
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: {suggest(str(split), SPLITS)}")
        key = (SPLITS.index(split), step, rows, length)
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
        ids, answers = self.sample(random, rows, self.tokens(length))
        return torch.from_numpy(ids), torch.from_numpy(answers)

    def labels(self, ids: Tensor, answers: Tensor) -> Tensor:
        """Return (B, L) targets, which count where an answer is asked for."""
        if answers.ndim == 2:
            return answers
        targets = torch.full_like(ids, IGNORED)
        targets[:, -1] = answers
        return targets

    def line(self) -> str:
        """Return the contract as one line, for people."""
        train, test = (f"{low}-{high}" for low, high in (self.trained, self.tested))
        return (
            f"{self.name}: {self.about}; trained on {train} tokens, tested on {test}, label at the {self.label} only; "
            f"{self.fidelity}, after {self.source} at {self.revision[:12]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as JSON data."""
        names = ("name", "about", "source", "revision", "fidelity", "inputs", "answers", "trained", "tested", "label")
        found = {name: getattr(self, name) for name in names}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
