"""How a causal map is solved along its tokens: all at once, chunk after chunk, or one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

from deqlm_solvers import Options, Registry, options
from deqlm_solvers.checks import whole

__all__ = ["MODES", "Chunked", "Mode", "Sequential", "Simultaneous"]


class Mode(Options, ABC):
    """Cuts L tokens into chunks that are solved one after another, each on top of what was committed before.

    A causal map has the same fixed points in every mode. The points that are found agree to about ||(I - J)^-1|| times
    the tolerance, where iteration converges and within one basin of attraction.

    Reference:
        M. Schoene et al. (2025), Implicit language models are RNNs, ICML: simultaneous mode is a Jacobi iteration on a
        block lower-triangular system, sequential mode is forward substitution.
    """

    @abstractmethod
    def cuts(self, length: int) -> list[tuple[int, int]]:
        """Return first token and end (exclusive) of each chunk of ``length`` tokens, >= 1."""


MODES: Registry[Mode] = Registry("mode", Mode, "deqlm.modes")
"""The modes by name: ``Mode.to_dict()`` holds it, ``MODES.make(dict)`` reads it."""


@MODES.register("simultaneous")
@options
class Simultaneous(Mode):
    """One solve of all tokens.

    Examples:
        >>> Simultaneous().cuts(5)
        [(0, 5)]
    """

    def cuts(self, length: int) -> list[tuple[int, int]]:
        return [(0, length)]


@MODES.register("chunked")
@options(kw_only=False)
class Chunked(Mode):
    """One solve per ``size`` tokens; the last chunk may be shorter.

    Args:
        size: tokens per chunk, >= 1.

    Raises:
        ValueError: a size that is no whole number >= 1.

    Examples:
        >>> Chunked(2).cuts(5)
        [(0, 2), (2, 4), (4, 5)]
    """

    size: int

    def __post_init__(self) -> None:
        whole("size", self.size, 1)

    def cuts(self, length: int) -> list[tuple[int, int]]:
        return list(pairwise([*range(0, length, self.size), length]))


@MODES.register("sequential")
@options
class Sequential(Mode):
    """One solve per token, which is how text is generated.

    Examples:
        >>> Sequential().cuts(3)
        [(0, 1), (1, 2), (2, 3)]
    """

    def cuts(self, length: int) -> list[tuple[int, int]]:
        return Chunked(1).cuts(length)
