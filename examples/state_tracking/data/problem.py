"""Word problems: sequences of elements of a group or monoid, and their running products."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deqlm_solvers.core.checks import number, require, suggest, whole
from examples.state_tracking.data import algebra
from examples.state_tracking.data.algebra import Algebra
from examples.state_tracking.data.vocabulary import Vocabulary

SPLITS = ("train", "valid", "test")
BLOCK = 1 << 14
"""Tokens that are drawn and multiplied at a time: more than that leave the cache."""

GROUPS: dict[str, Callable[[int], Algebra]] = {
    "Z": algebra.cyclic,
    "S": algebra.symmetric,
    "A": algebra.alternating,
}
MONOIDS: dict[str, Callable[[], Algebra]] = {"M": algebra.aperiodic, "F": algebra.flip_flop}
EXAMPLES = ["Z2", "Z3", "Z5", "Z60", "S3", "S4", "S5", "A4", "A5", "A6", "S3xZ2", "A4xZ5", "A5xM", "A5xMxM", "M", "F"]


class Words(NamedTuple):
    """Token sequences and what a model shall answer at each position, both (B, L) int64."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class WordProblem:
    """Multiply elements from left to right and say the running product at every position.

    A token is an element of the direct product of all factors, numbered with the first factor as the slowest digit:
    4·g + m for A5 x M. With probability ``p`` its group part is the identity (an *easy* token), else uniform over the
    group, where the identity has its share; the monoid part is always uniform. Targets are **aligned**: position j
    holds x_0·x_1·...·x_j, input j included, so the loss must not shift them.

    Args:
        groups: group factors, before the monoids.
        monoids: the other factors.
        p: probability of an easy token; the paper's fraction of hard tokens is 1 - p. (The help text of the authors'
            script says the opposite of what their code does; this is what the code does.)
        generators: tokens are drawn from so many elements that generate the group, `Algebra.generators`; None draws
            from all. Only for one group without monoids.

    Raises:
        ValueError: p outside [0, 1], no factor, a group that is none, p > 0 without a group, or generators of something
            else than one group.

    Reference: paper section "state tracking"; the order of elements is that of the authors' data files.
    """

    groups: tuple[Algebra, ...]
    monoids: tuple[Algebra, ...] = ()
    p: float = 0.0
    generators: int | None = None

    def __post_init__(self) -> None:
        number("p", self.p, "in [0, 1], the probability of an easy token", lambda p: 0 <= p <= 1)
        require(len(self.factors) > 0, "groups and monoids", (), "at least one")
        for group in self.groups:
            require(group.is_group, "groups", group.name, "groups; give monoids as monoids")
        require(self.p == 0 or len(self.groups) > 0, "p", self.p, f"0 without a group, {self.name} has none")
        if self.generators is not None:
            alone = len(self.groups) == 1 and not self.monoids
            require(alone, "generators", self.generators, "None for anything but one group")
            for group in self.groups:
                group.generators(self.generators)  # refuses a wrong number here, not at the first draw

    @property
    def factors(self) -> tuple[Algebra, ...]:
        """All factors, groups first."""
        return (*self.groups, *self.monoids)

    @property
    def name(self) -> str:
        """The name that the parser reads, such as "A5xM" or "S5:32"."""
        chosen = "" if self.generators is None else f":{self.generators}"
        return "x".join(factor.name for factor in self.factors) + chosen

    def __repr__(self) -> str:
        return f"WordProblem({self.name}, p={self.p}, {len(self)} tokens)"

    def __len__(self) -> int:
        return prod(map(len, self.factors))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Names of the tokens; inputs and targets share it."""
        return Vocabulary(",".join(parts) for parts in product(*(factor.elements for factor in self.factors)))

    @cached_property
    def algebra(self) -> Algebra:
        """The direct product of all factors with its whole table."""
        return algebra.direct_product(self.factors)

    def with_p(self, p: float) -> WordProblem:
        """Return the same problem with another share of easy tokens."""
        return replace(self, p=p)

    def draw(
        self, batch: int, length: int, *, seed: int = 0, step: int = 0, split: str = "train", rank: int = 0
    ) -> Words:
        """Return a batch that depends on nothing but the arguments: the same ones give the same batch anywhere.

        Every argument but ``p`` of the problem starts another random sequence; problems that differ in ``p`` alone see
        the same elements with more or fewer of them replaced by the identity.

        Args:
            batch: sequences.
            length: tokens per sequence.
            seed: of the experiment.
            step: number of the batch.
            split: "train", "valid" or "test".
            rank: of the process among those that train together.

        Raises:
            ValueError: batch or length below 1, a negative number, an unknown split.
        """
        whole("batch", batch, 1)
        whole("length", length, 1)
        for name, value in {"seed": seed, "step": step, "rank": rank}.items():
            whole(name, value, 0, None)
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: {suggest(str(split), SPLITS)}")
        key = (SPLITS.index(split), rank, step, batch, length)
        sources = np.random.SeedSequence(seed, spawn_key=key).spawn(2)
        elements, easy = (np.random.Generator(np.random.PCG64(source)) for source in sources)
        words = Words(*(torch.empty(batch, length, dtype=torch.int64) for _ in range(2)))
        rows = max(1, BLOCK // length)
        for start in range(0, batch, rows):
            block = slice(start, start + rows)
            parts = self._draw_parts(elements, easy, (min(rows, batch - start), length))
            words.inputs[block] = self._join(parts)
            words.targets[block] = self._join(self._running(parts))
        return words

    def _draw_parts(
        self, elements: np.random.Generator, easy: np.random.Generator, shape: tuple[int, int]
    ) -> list[np.ndarray]:
        parts = [elements.integers(self.generators or len(factor), size=shape) for factor in self.factors]
        if self.generators is not None:
            parts = [self.groups[0].generators(self.generators)[parts[0]]]
        if self.p == 0:
            return parts
        hard = easy.random(shape) >= self.p
        return [part * hard if i < len(self.groups) else part for i, part in enumerate(parts)]

    def targets(self, inputs: Tensor) -> Tensor:
        """Return the running products of ``inputs``, (..., L) int64, aligned with them.

        Raises:
            ValueError: a token that is no element, or no whole numbers.
        """
        parts = np.unravel_index(self._checked(inputs), [len(factor) for factor in self.factors])
        return self._join(self._running(parts)).to(inputs.device)

    def hard(self, inputs: Tensor) -> Tensor:
        """Return where the group part is not the identity: the tokens that move the group's state, bool.

        One in |G| of the tokens that were drawn as hard is the identity all the same, and counts as easy here.
        """
        return torch.div(inputs, prod(map(len, self.monoids)), rounding_mode="floor") != 0

    def _checked(self, tokens: Tensor) -> np.ndarray:
        integral = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
        require(integral, "dtype of tokens", tokens.dtype, "an integer type")
        require(tokens.ndim > 0 and tokens.numel() > 0, "shape of tokens", tuple(tokens.shape), "(..., L) with L >= 1")
        low, high = (int(end) for end in torch.aminmax(tokens))
        rule = f"in 0..{len(self) - 1}, the elements of {self.name}"
        require(low >= 0 and high < len(self), "tokens", (low, high), rule)
        return tokens.detach().cpu().to(torch.int64).numpy()

    def _running(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [factor.running(part) for factor, part in zip(self.factors, parts, strict=True)]

    def _join(self, parts: list[np.ndarray]) -> Tensor:
        tokens = parts[0]
        for factor, part in zip(self.factors[1:], parts[1:], strict=True):
            tokens = tokens * len(factor) + part
        return torch.from_numpy(tokens)


def word_problem(name: str, monoid: str | None = None, p: float = 0.0) -> WordProblem:
    """Return the word problem of a name.

    Args:
        name: factors joined by "x": groups Z<n>, S<n>, A<n>, monoids M (the authors') and F (flip-flop), groups first:
            "A5", "S3xZ2", "A5xM". The benchmark's "A4_x_Z5" is read too. "S5:32" draws from 32 generators of S5.
        monoid: more monoid factors, such as "M" or "MxM"; None adds none.
        p: probability of an easy token.

    Raises:
        ValueError: an unknown name (the nearest known one is named), a group too large for a table, p outside [0, 1].

    Examples:
        >>> word_problem("A5", monoid="M", p=0.9)
        WordProblem(A5xM, p=0.9, 240 tokens)
        >>> x, y = word_problem("Z5").draw(batch=1, length=4, seed=1)
        >>> bool((y == x.cumsum(1) % 5).all())
        True
        >>> word_problem("B5")
        Traceback (most recent call last):
        ValueError: unknown group or monoid 'B5': did you mean 'Z5'? ...
    """
    require(isinstance(name, str), "name", name, 'a text such as "A5xM"')
    name, colon, count = name.partition(":")
    if colon:
        require(count.isdecimal(), "generators of a name", count, 'a whole number, as in "S5:32"')
    whole_name = name if monoid is None else f"{name}x{monoid}"
    factors = [_factor(part, whole_name) for part in re.split("_x_|x", whole_name)]
    groups = tuple(factor for factor in factors if factor.is_group)
    require(factors[: len(groups)] == list(groups), "name", whole_name, "groups first, then monoids")
    return WordProblem(groups, tuple(factors[len(groups) :]), p, int(count) if colon else None)


def _factor(part: str, name: str) -> Algebra:
    found = re.fullmatch(r"([ZSA])([1-9]\d{0,8})", part)
    if found:
        return GROUPS[found[1]](int(found[2]))
    if part in MONOIDS:
        return MONOIDS[part]()
    where = f" in {name!r}" if part != name else ""
    raise ValueError(
        f"unknown group or monoid {part!r}{where}: {suggest(part.upper(), EXAMPLES)} (any Z<n>, S<n>, A<n>)"
    )
