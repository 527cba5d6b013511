"""How a causal map is solved along its tokens: all at once, in chunks, one by one, or in a window that slides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch

from deqlm.sequence.chunk_evaluator import ChunkMap
from deqlm.sequence.chunk_size import FIRST, sizes_of
from deqlm.sequence.chunked_solve import ChunkedSolve, StartOf
from deqlm.sequence.frontier import WindowSolve, check_slide
from deqlm.wrap.rows import Rows
from deqlm_solvers import Options, Registry, Solve, Solver, StepSolver, Stop, options
from deqlm_solvers.core.checks import require, whole

__all__ = ["MODES", "Auto", "Chunked", "Frontier", "Mode", "Sequential", "Simultaneous", "TokenCall"]


@dataclass(frozen=True, eq=False)
class TokenCall:
    """One call along the tokens, as a mode sees it.

    Attributes:
        chunk: returns the map of tokens ``start`` to ``stop`` (exclusive).
        rows: how the state, (B, L, ...), is packed.
        how: solver and stop of each chunk.
        cache: what tokens before the first one left.
        commit: the last chunk is committed too.
        owner: whose map it is; what a call finds out about it may be kept as long as it lives.
    """

    chunk: Callable[[int, int], ChunkMap]
    rows: Rows
    how: Solve
    cache: Any
    commit: bool
    owner: object = None

    @property
    def shape(self) -> torch.Size:
        """(B, L, ...)."""
        return self.rows.shapes[0]

    @property
    def circumstances(self) -> tuple[Any, ...]:
        """What the time and the number of evaluations of a chunk depend on, besides the layer and its input."""
        inference, rows = torch.is_inference_mode_enabled(), self.rows
        return (self.how, self.shape[0], self.shape[2:], rows.dtype, rows.device, torch.get_num_threads(), inference)


class Mode(Options, ABC):
    """Cuts L tokens into chunks that are solved one after another, each on top of what was committed before.

    A causal map has the same fixed points in every mode. The points that are found agree to about ||(I - J)^-1|| times
    the tolerance, where iteration converges and within one basin of attraction. `Solution.steps` are the evaluations
    that a row went through; `Solution.token_steps` counts those of a token's own chunk, or since it entered the window.

    Reference:
        M. Schoene et al. (2025), Implicit language models are RNNs, ICML: simultaneous mode is a Jacobi iteration on a
        block lower-triangular system, sequential mode is forward substitution.

    Class attributes:
        start: where the tokens of a chunk start: "zero" (or where the call says), or "previous", the point of the last
            token before the chunk.
    """

    start: ClassVar[StartOf] = "zero"

    def check(self, solve: Solve) -> None:
        """Refuse, at construction, a solve that this mode cannot go along with.

        Raises:
            ValueError: with the reason and what would fit.
        """
        return

    @abstractmethod
    def cuts(self, length: int) -> list[tuple[int, int]]:
        """Return first token and end (exclusive) of each chunk of ``length`` tokens, >= 1."""

    def one_solve(self, length: int) -> bool:
        """Say whether ``length`` tokens are one solve, whatever a call finds out."""
        return len(self.cuts(length)) == 1

    def for_solver(self, solver: Solver) -> Mode:
        """Return the mode to take with ``solver``; self, the default, where any will do."""
        return self

    def for_model(self, stop: Stop, grad: bool) -> Mode:
        """Return the mode to take in a call of a language model, by its stop and grad mode; self, the default."""
        return self

    def unsolved(self) -> Mode:
        """Return the mode to take where every token is evaluated once and nothing is solved; self, the default."""
        return self

    def remedy(self) -> str:
        """Return what to try beside more evaluations where rows end MAX_ITER; empty, the default, where nothing."""
        return ""

    def way(self, call: TokenCall) -> ChunkedSolve | WindowSolve:
        """Return how a call goes along its tokens; the default solves the chunks of `cuts`.

        Raises:
            ValueError: a solver or stop that the mode cannot honour.
        """
        cuts = self.cuts(call.shape[1])
        return ChunkedSolve(call.chunk, cuts, call.shape, call.cache, call.commit, self.start)


MODES: Registry[Mode] = Registry("mode", Mode, "deqlm.sequence.modes")
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

    def remedy(self) -> str:
        return "take mode='auto': chunks of tokens, each with max_iter evaluations"


@MODES.register("chunked")
@options(kw_only=False)
class Chunked(Mode):
    """One solve per ``size`` tokens; the last chunk may be shorter.

    The prefix of a causal map that has converged grows by a token every one or two evaluations, so that a solve of all
    L tokens needs a number of evaluations that grows with L, each on L tokens. In chunks the work per token is flat.

    Args:
        size: tokens per chunk, >= 1; more than there are is one chunk. "auto" tries sizes on the chunks of the first
            calls, some 64 tokens of each: 16, 8, 32, 64, ... as long as that may pay; then it takes the one with the
            least time per token, evaluations times the time of one, and keeps it for the layer, solver, stop, batch
            size, dtype and device. The tried chunks are part of the answer, so nothing is evaluated beside. Sizes
            differ in their answers by no more than the tolerance; give a number where runs must repeat to the bit. With
            a budget (``Stop(rtol=0)``), or where chunks of 16 do not converge, it is 16.
        start: "zero", or "previous" for the point of the last token of the chunk before, with the same answer up to the
            tolerance, within one basin of attraction. The first chunk starts at zero.

    Raises:
        ValueError: a size that is no whole number >= 1, or an unknown start.

    Examples:
        >>> Chunked(2).cuts(5)
        [(0, 2), (2, 4), (4, 5)]
    """

    size: int | Literal["auto"]
    start: StartOf = "zero"  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.size != "auto":
            whole("size", self.size, 1)
        _check_start(self.start)

    def cuts(self, length: int) -> list[tuple[int, int]]:
        if self.size == "auto":
            raise ValueError("size='auto' has no cuts before a call has timed its map")
        return list(pairwise([*range(0, length, self.size), length]))

    def one_solve(self, length: int) -> bool:
        return length == 1 if self.size == "auto" else length <= self.size

    def unsolved(self) -> Mode:
        # without a solve no chunk is cheaper than another
        return Simultaneous() if self.size == "auto" else self

    def way(self, call: TokenCall) -> ChunkedSolve | WindowSolve:
        if self.size != "auto":
            return super().way(call)
        require(not call.how.stop.collective, "size", "auto", "a number with Stop(collective=True): the clock decides")
        made = self.replace(size=FIRST).way(call)
        if isinstance(made, ChunkedSolve) and not call.how.stop.is_budget:
            made.sizes = sizes_of(call.owner, call.circumstances, call.how.stop.max_iter)
            made.cuts = made.sizes.cuts(call.shape[1])
        return made


@MODES.register("sequential")
@options
class Sequential(Mode):
    """One solve per token, which is how text is generated.

    Args:
        start: as for `Chunked`.

    Raises:
        ValueError: an unknown start.

    Examples:
        >>> Sequential().cuts(3)
        [(0, 1), (1, 2), (2, 3)]
    """

    start: StartOf = "zero"  # type: ignore[misc]

    def __post_init__(self) -> None:
        _check_start(self.start)

    def cuts(self, length: int) -> list[tuple[int, int]]:
        return Chunked(1).cuts(length)


@MODES.register("frontier")
@options(kw_only=False)
class Frontier(Mode):
    """A window that slides along the tokens with the first one that has not converged.

    Per row, a token is frozen at the point z_t where five evaluations in a row have passed the tolerance, all tokens
    before it being frozen or passing, and r q / (1 - q) is within it too, for the residual r and its ratio q to
    the residual before, clipped to [.1, .99]. A row's window is the ``window`` tokens behind its frozen ones. Frozen
    tokens are committed once in a while, by one evaluation.

    Rows share evaluations and the tokens that are committed; a row that is ahead of the slowest one by a window waits
    outside of the batch until that one comes nearer. So no row's points depend on other rows, but for rounding.

    ``Stop.max_iter`` is the number of evaluations that a row may spend without freezing a token; its whole window is
    then taken as it is, and the row ends MAX_ITER unless these tokens pass. Steps are plain iteration (`FixedPoint`).

    Args:
        window: tokens, >= 1; more than there are is all of them.

    Raises:
        ValueError: a window that is no whole number >= 1.

    Examples:
        >>> Frontier(window=4).cuts(6)  # of a map that is evaluated once
        [(0, 4), (4, 6)]
    """

    window: int = 8

    def __post_init__(self) -> None:
        whole("window", self.window, 1)

    def check(self, solve: Solve) -> None:
        check_slide(solve)

    def cuts(self, length: int) -> list[tuple[int, int]]:
        return Chunked(self.window).cuts(length)

    def one_solve(self, length: int) -> bool:
        return False

    def remedy(self) -> str:
        return "take a smaller window"

    def way(self, call: TokenCall) -> WindowSolve:
        self.check(call.how)
        return WindowSolve(call.chunk, self.window, call.shape, call.cache, call.commit)


@MODES.register("auto")
@options
class Auto(Mode):
    """What the models take: a solve of all tokens, and chunks of 16 from where it stands after 24 evaluations.

    Maps whose tokens settle together are solved at once; where the converged prefix grows token by token, chunks cost
    less, and the first attempt adds 24 evaluations. Up to 32 tokens there is one solve and no chunk. The clock has no
    part in it, and no row's points depend on other rows, but for rounding.

    `ImplicitLM` makes one solve of all tokens where grad mode is on, because a truncated solve in chunks trains another
    model than a truncated one of all tokens, and with a budget (``Stop(rtol=0)``), whose evaluations are counted. A
    solver that does not go step by step (`deqlm.Deer`, `deqlm.Fallback`) always solves all tokens at once.

    Examples:
        >>> Auto().cuts(20), Auto().cuts(40)
        ([(0, 20)], [(0, 16), (16, 32), (32, 40)])
    """

    SHORT: ClassVar[int] = 32
    SIZE: ClassVar[int] = 16
    TRIED: ClassVar[int] = 24

    def cuts(self, length: int) -> list[tuple[int, int]]:
        return Simultaneous().cuts(length) if length <= self.SHORT else Chunked(self.SIZE).cuts(length)

    def for_solver(self, solver: Solver) -> Mode:
        # a whole solver has a budget of its own, which a short attempt would cut
        return self if isinstance(solver, StepSolver) else Simultaneous()

    def for_model(self, stop: Stop, grad: bool) -> Mode:
        return Simultaneous() if grad or stop.is_budget else self

    def unsolved(self) -> Mode:
        return Simultaneous()

    def way(self, call: TokenCall) -> ChunkedSolve:
        cuts = self.cuts(call.shape[1])
        tries = self.TRIED if len(cuts) > 1 else 0
        return ChunkedSolve(call.chunk, cuts, call.shape, call.cache, call.commit, self.start, tries)


def _check_start(start: str) -> None:
    require(start in ("zero", "previous"), "start", start, "'zero' or 'previous'")
