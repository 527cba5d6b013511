"""Tokens and their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require


class Vocabulary:
    """Names of tokens; the token of a name is its place.

    Args:
        names: one name per token, all different.

    Raises:
        ValueError: no name, or a name twice.

    Examples:
        >>> words = Vocabulary(["e", "a", "b"])
        >>> words.encode(["a", "e"])
        tensor([1, 0])
        >>> words.decode([2, 2])
        ['b', 'b']
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._tokens = {name: token for token, name in enumerate(self.names)}
        require(len(self.names) > 0, "names", self.names, "at least one name")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        require(not twice, "names", twice, "all different")

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._tokens

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} names)"

    def token(self, name: str) -> int:
        """Return the token of one name.

        Raises:
            ValueError: no such name; the nearest one is named.
        """
        if name not in self._tokens:
            near = get_close_matches(name, self.names, n=1, cutoff=0.5)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown word {name!r}, it is not among the {len(self)} of the vocabulary{hint}")
        return self._tokens[name]

    def encode(self, names: Iterable[str]) -> Tensor:
        """Return the tokens of ``names``, (N,) int64."""
        return torch.tensor([self.token(name) for name in names], dtype=torch.int64)

    def decode(self, tokens: Tensor | Sequence[int]) -> list[str]:
        """Return the names of ``tokens``, (N,).

        Raises:
            ValueError: a token that is not in the vocabulary.
        """
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        for token in numbers:
            require(0 <= token < len(self), "token", token, f"in 0..{len(self) - 1}")
        return [self.names[token] for token in numbers]

    def check_model(self, vocab_size: int, *, padded: bool = False) -> None:
        """Raise unless a model with ``vocab_size`` rows in its embedding is one for these tokens.

        Args:
            vocab_size: rows of the model's embedding and of its head.
            padded: the model may have more rows than there are tokens.

        Raises:
            ValueError: the sizes do not fit.
        """
        fits = vocab_size >= len(self) if padded else vocab_size == len(self)
        if not fits:
            least = "at least " if padded else ""
            ends = f"{self.names[0]!r} to {self.names[-1]!r}"
            raise ValueError(
                f"vocab_size of the model must be {least}{len(self)}, got {vocab_size}: "
                f"the data has {len(self)} tokens ({ends}), was the model made for other data?"
            )
