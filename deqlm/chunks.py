"""Solves a causal map chunk after chunk; every mode goes through here.

Each chunk is solved with what was committed before as constants. To commit is one undamped evaluation
(y, cache) = F(z; cache) at the point z that the solve of the chunk returned, in every row its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from deqlm.failures import Failures
from deqlm.fixed_point import solve_rows
from deqlm.gradients import Gradient, Unrolled
from deqlm.memory_cap import MemoryCap
from deqlm.modes import Mode
from deqlm.noise import Replay
from deqlm.rows import RowMap, map_tensors
from deqlm_solvers import Cost, Frame, Map, Solution, Solve, Stop, options
from deqlm_solvers.checks import require

__all__ = ["ChunkMap", "Committed", "per_token", "refuse_noise", "solve_chunks", "some_rows"]


class ChunkMap(Protocol):
    """The map of one chunk of tokens of one call."""

    def __call__(self, z: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Return f(z) of the chunk's tokens, in the shape of ``z`` (B, l, ...), and ``cache`` with them as new values.

        Args:
            z: state of these tokens.
            cache: what earlier tokens left; read and never written.
        """
        ...

    def rows(self, index: Tensor) -> ChunkMap | None:
        """Return the map of some rows (K,), int64, or None where rows cannot leave the batch."""
        ...


@dataclass(frozen=True, eq=False)
class Committed:
    """What a pass over the tokens leaves.

    Attributes:
        y: f at the returned point, (B, L, ...): one undamped evaluation; None where the last chunk was not committed.
        cache: the cache behind the last token, likewise.
    """

    y: Tensor | None
    cache: Any


def per_token(stop: Stop) -> Stop:
    """Return the stopping rule of a causal map: every token must pass, along dimension 1.

    ``keep="best_f"`` knows rows only and stays as it is.

    Raises:
        ValueError: a rule for other parts than tokens along dimension 1.

    Examples:
        >>> per_token(Stop(rtol=1e-3)).per
        'token'
    """
    if stop.keep == "best_f":
        return stop
    require(stop.per != "leaf", "per", stop.per, "'token' for a causal map")
    require(stop.token_dim == 1, "token_dim", stop.token_dim, "1 for a causal map")
    return stop.replace(per="token")


def solve_chunks(
    f: RowMap,
    chunk: Callable[[int, int], ChunkMap],
    mode: Mode,
    how: Solve,
    gradient: Gradient,
    failures: Failures,
    *,
    cache: Any,
    commit: bool,
    token_mask: Tensor | None = None,
    cap: MemoryCap | None = None,
) -> tuple[Solution, Committed]:
    """Solve the causal map ``f`` chunk after chunk and tie the joined point to autograd through the whole of f.

    With grad enabled the gradient method is applied to f itself, from the joined points: the phantom steps, or the
    adjoint, are those of the whole sequence.

    Args:
        f: the map of all tokens, of one leaf (B, L, ...).
        chunk: returns the map of tokens ``start`` to ``stop`` (exclusive), whose evaluations equal those of f.
        mode: where the tokens are cut.
        how: solver and stop of each chunk.
        gradient: as for `deqlm.solve`.
        failures: likewise.
        cache: what tokens before the first one left.
        commit: also commit the last chunk; needed for `Committed`.
        token_mask: (B, L) bool, True where a token counts; None counts all.
        cap: limit of memory, held against a solve of all tokens.

    Returns:
        The solution, whose ``z`` joins the points of all chunks (with grad: what the gradient method returns),
        ``steps`` are the evaluations of the chunks that the row went through, summed, and ``residual`` and ``status``
        the worst of them; and what was committed.

    Raises:
        ValueError: a gradient that differentiates the solver's own steps, with several chunks or a commit.
    """
    (shape,) = f.rows.shapes
    cuts = mode.cuts(shape[1])
    if torch.is_grad_enabled() and isinstance(gradient, Unrolled):
        if len(cuts) == 1 and not commit:
            return solve_rows(f, how, gradient, failures, token_mask=token_mask, cap=cap), Committed(None, None)
        raise ValueError(
            "gradient 'unrolled' differentiates the steps of one simultaneous solve, which commits no cache; use "
            "mode=Simultaneous() without a cache, another gradient, or torch.no_grad()"
        )
    walk = Walk(chunk, cuts, shape, cache, commit)
    sol = solve_rows(f, ByChunks(how.solver, how.stop, walk=walk), gradient, failures, token_mask=token_mask, cap=cap)
    done = Committed(torch.cat(walk.outputs, dim=1), walk.cache) if commit else Committed(None, None)
    return sol.replace(cost=sol.cost + walk.cost), done


@dataclass(eq=False)
class Walk:
    """The way of one call along its tokens, and what it has left so far.

    Attributes:
        chunk: see `solve_chunks`.
        cuts: first token and end of each chunk.
        shape: of the state, (B, L, ...).
        cache: what the tokens so far left.
        commit: whether the last chunk is committed too.
        outputs: f at the returned points, one tensor per committed chunk.
        cost: evaluations of chunks, those that commit included.
    """

    chunk: Callable[[int, int], ChunkMap]
    cuts: list[tuple[int, int]]
    shape: torch.Size
    cache: Any
    commit: bool
    outputs: list[Tensor] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    def go(self, how: Solve, z0: Tensor, frame: Frame) -> Solution:
        """Solve every chunk from its part of ``z0`` (B, N), committing in between; return them joined."""
        start = z0.reshape(self.shape)
        solved, points = [], []
        for first, end in self.cuts:
            part = start[:, first:end]
            piece = Piece(self.chunk(first, end), self.cache, part.shape)
            sol = how(piece, part.reshape(part.shape[0], -1), _frame_of(frame, first, end))
            if self.commit or end < self.shape[1]:
                y, self.cache = piece.commit(sol.z)
                self.outputs.append(y)
            self.cost = self.cost + Cost(*piece.spent, vjps=sol.cost.vjps, jvps=sol.cost.jvps)
            solved.append(sol)
            points.append(sol.z.reshape(part.shape))
        return _joined(solved, torch.cat(points, dim=1).reshape(z0.shape))


@options(kw_only=True)
class ByChunks(Solve):
    """A solve that goes chunk after chunk, in place of a plain one within a call; it evaluates no f but its own.

    Args:
        walk: the way along the tokens.
    """

    walk: Walk

    def __call__(self, f: Map, z0: Tensor, frame: Frame | None = None) -> Solution:
        with torch.no_grad():
            return self.walk.go(Solve(self.solver, self.stop), z0, frame or Frame())


class Piece:
    """The map of one chunk on rows (B, l N), which remembers its last evaluation for the commit.

    Args:
        chunk: the map.
        cache: what earlier tokens left.
        shape: of the state of these tokens, (B, l, ...).
        spent: calls and rows summed over them, shared with the maps of fewer rows; None starts at zero.
    """

    def __init__(self, chunk: ChunkMap, cache: Any, shape: torch.Size, spent: list[int] | None = None) -> None:
        self.chunk = chunk
        self.cache = cache
        self.shape = shape
        self.part_of_batch = spent is not None
        self.spent = [0, 0] if spent is None else spent
        self.last: tuple[Tensor, Tensor, Any] | None = None

    def __call__(self, z: Tensor) -> Tensor:
        self.last = None  # the old cache goes before the new one comes
        y, cache = self._evaluate(z)
        if not self.part_of_batch:
            self.last = (z.clone(), y, cache)
        return y.reshape(z.shape)

    def commit(self, z: Tensor) -> tuple[Tensor, Any]:
        """Return f at ``z`` (B, l N), in the shape of the state, and the cache with these tokens.

        Rows that are done stay where they are, so the last evaluation is often at ``z`` already.
        """
        if self.last is not None and torch.equal(self.last[0], z):
            return self.last[1:]
        return self._evaluate(z)

    def narrow(self, rows: Tensor) -> Piece | None:
        """Return the map on ``rows`` (K,) alone; see `deqlm_solvers.narrow.NarrowMap`."""
        chunk = self.chunk.rows(rows)
        if chunk is None:
            return None
        shape = torch.Size((rows.shape[0], *self.shape[1:]))
        return Piece(chunk, some_rows(self.cache, rows, self.shape[0]), shape, self.spent)

    def _evaluate(self, z: Tensor) -> tuple[Tensor, Any]:
        self.spent[0] += 1
        self.spent[1] += self.shape[0]
        y, cache = self.chunk(z.reshape(self.shape), self.cache)
        require(y.shape == self.shape, "the shape of f(z)", tuple(y.shape), f"that of z, {tuple(self.shape)}")
        return y.to(z.dtype), cache


def refuse_noise(replay: Replay) -> None:
    """Raise if an evaluation has drawn noise, which would be another one in every chunk.

    Raises:
        ValueError: it has.
    """
    if replay.noisy:
        raise ValueError(
            "mode must be Simultaneous() where the layer draws noise within an evaluation: each chunk would draw its "
            "own. Use eval(), or deqlm.layers.VariationalDropout, which a Context draws once per call"
        )


def some_rows(tree: Any, rows: Tensor, batch: int) -> Any:
    """Return ``tree`` with ``rows`` (K,) of every tensor whose first dimension is ``batch``."""

    def select(leaf: Tensor) -> Tensor:
        return leaf.index_select(0, rows) if leaf.dim() and leaf.shape[0] == batch else leaf

    return map_tensors(select, tree)


def _frame_of(frame: Frame, first: int, end: int) -> Frame:
    assert frame.leaves is not None
    ((_, *rest),) = frame.leaves
    mask = None if frame.token_mask is None else frame.token_mask[:, first:end]
    return replace(frame, leaves=((end - first, *rest),), token_mask=mask)


def _joined(parts: list[Solution], z: Tensor) -> Solution:
    if len(parts) == 1:
        return parts[0].replace(z=z, cost=Cost())

    def worst(name: str) -> Tensor:
        return torch.stack([getattr(part, name) for part in parts]).amax(0)

    traces = [part.trace for part in parts if part.trace is not None]
    by_token = [part.token_steps for part in parts if part.token_steps is not None]
    return parts[0].replace(
        z=z,
        residual=worst("residual"),
        relative=worst("relative"),
        steps=torch.stack([part.steps for part in parts]).sum(0),
        status=worst("status"),
        cost=Cost(),
        trace=torch.cat(traces) if traces else None,
        token_steps=torch.cat(by_token, dim=1) if by_token else None,
        picked=None,
        choices=(),
    )
