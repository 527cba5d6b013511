"""Solves a causal map chunk after chunk; every mode goes through here.

Each chunk is solved with what was committed before as constants. To commit is one undamped evaluation
(y, cache) = F(z; cache) at the point z that the solve of the chunk returned, in every row its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deqlm.functional import solve_rows
from deqlm.gradients import Gradient, Unrolled
from deqlm.sequence.chunk_evaluator import ChunkEvaluator, ChunkMap, layout_of
from deqlm.sequence.chunk_size import FIRST, ChunkSizeTuner, sizes_of
from deqlm.sequence.frontier import WindowSolve, check_slide
from deqlm.sequence.modes import Auto, Chunked, Frontier, Mode, Simultaneous, StartOf
from deqlm.wrap.failures import Failures
from deqlm.wrap.memory_cap import MemoryCap
from deqlm.wrap.rows import RowMap, Rows
from deqlm_solvers import Cost, Layout, Map, Solution, Solve, Status, StepSolver, Stop, options
from deqlm_solvers.core.checks import require

__all__ = ["Committed", "per_token", "solve_chunks"]

CUT_SHORT = (int(Status.MAX_ITER), int(Status.STALLED))
"""Statuses of rows that shorter chunks might have solved."""


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
    return stop if stop.per == "token" else stop.replace(per="token")


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
    owner: object = None,
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
        owner: whose map it is; what ``Chunked("auto")`` has measured is kept as long as it lives.

    Returns:
        The solution, whose ``z`` joins the points of all chunks (with grad: what the gradient method returns),
        ``steps`` are the evaluations of the chunks that the row went through, summed, and ``residual`` and ``status``
        the worst of them; and what was committed.

    Raises:
        ValueError: a gradient that differentiates the solver's own steps, with several chunks or a commit; a solver or
            stop that the mode cannot honour.
    """
    (shape,) = f.rows.shapes
    if isinstance(mode, Auto) and not isinstance(how.solver, StepSolver):
        mode = Simultaneous()  # a whole solver has a budget of its own, which a short attempt would cut
    tokens = {"token_mask": token_mask, "cap": cap, "tokens": shape[1]}
    if torch.is_grad_enabled() and isinstance(gradient, Unrolled):
        if mode.one_solve(shape[1]) and not commit:
            return solve_rows(f, how, gradient, failures, **tokens), Committed(None, None)
        raise ValueError(
            "gradient 'unrolled' differentiates the steps of one simultaneous solve, which commits no cache; use "
            "mode=Simultaneous() without a cache, another gradient, or torch.no_grad()"
        )
    if mode.one_solve(shape[1]) and not commit and (how.stop.is_budget or how.stop.keep == "best_f"):
        # no row leaves and nothing is committed: f itself does
        return solve_rows(f, how, gradient, failures, **tokens), Committed(None, None)
    walk = _walk(mode, chunk, shape, cache, commit)
    if isinstance(walk, WindowSolve):
        check_slide(how)
    elif _timed(mode) and not how.stop.is_budget:
        walk.sizes = sizes_of(owner, _circumstances(how, f.rows), how.stop.max_iter)
        walk.cuts = walk.sizes.cuts(shape[1])
    sol = solve_rows(f, ByChunks(how.solver, how.stop, walk=walk), gradient, failures, **tokens)
    done = Committed(torch.cat(walk.outputs, dim=1), walk.cache) if commit else Committed(None, None)
    return sol.replace(cost=sol.cost + walk.cost), done


def _walk(
    mode: Mode, chunk: Callable[[int, int], ChunkMap], shape: torch.Size, cache: Any, commit: bool
) -> ChunkedSolve | WindowSolve:
    if isinstance(mode, Frontier):
        return WindowSolve(chunk, mode.window, shape, cache, commit)  # type: ignore[attr-defined]
    cuts = (Chunked(FIRST) if _timed(mode) else mode).cuts(shape[1])
    return ChunkedSolve(
        chunk, cuts, shape, cache, commit, mode.start, tries_whole=isinstance(mode, Auto) and len(cuts) > 1
    )


def _timed(mode: Mode) -> bool:
    return isinstance(mode, Chunked) and mode.size == "auto"  # type: ignore[attr-defined]


def _circumstances(how: Solve, rows: Rows) -> tuple[Any, ...]:
    """Return what the time and the number of evaluations of a chunk depend on, besides the layer and its input."""
    (shape,) = rows.shapes
    inference = torch.is_inference_mode_enabled()
    return (how, shape[0], shape[2:], rows.dtype, rows.device, torch.get_num_threads(), inference)


@dataclass(eq=False)
class ChunkedSolve:
    """The way of one call along its tokens, and what it has left so far.

    Attributes:
        chunk: see `solve_chunks`.
        cuts: first token and end of each chunk.
        sizes: what is told of every chunk, where that decides about the next one; else None.
        shape: of the state, (B, L, ...).
        cache: what the tokens so far left.
        commit: whether the last chunk is committed too.
        start: where chunks start, see `deqlm.sequence.modes.Mode`.
        tries_whole: whether a short solve of all tokens comes first, from whose points the chunks go on.
        outputs: f at the returned points, one tensor per committed chunk.
    """

    chunk: Callable[[int, int], ChunkMap]
    cuts: Iterable[tuple[int, int]]
    shape: torch.Size
    cache: Any
    commit: bool
    start: StartOf = "zero"
    tries_whole: bool = False
    sizes: ChunkSizeTuner | None = None
    outputs: list[Tensor] = field(default_factory=list)
    _spent: list[int] = field(default_factory=lambda: [0, 0, 0])
    _products: Cost = field(default_factory=Cost)
    _apart: set[tuple[bool, ...]] = field(default_factory=set)

    @property
    def cost(self) -> Cost:
        """Evaluations of chunks, those that commit included, and products with their Jacobians."""
        return self._products + Cost(*self._spent)

    def go(self, how: Solve, z0: Tensor, layout: Layout) -> Solution:
        """Solve every chunk from its part of ``z0`` (B, N), committing in between; return them joined."""
        if not self.tries_whole:
            return self._along(self.cuts, how, z0, layout)
        before = self.cache
        short = how.stop.replace(max_iter=min(how.stop.max_iter, Auto.TRIED))
        whole = self._along([(0, self.shape[1])], Solve(how.solver, short), z0, layout)
        if bool(whole.converged.all()):
            return whole
        self.cache = before
        self.outputs.clear()
        sol = self._along(self.cuts, how, whole.z, replace(layout, first=whole.first))
        return sol.replace(steps=sol.steps + whole.steps)

    def _along(self, cuts: Iterable[tuple[int, int]], how: Solve, z0: Tensor, layout: Layout) -> Solution:
        start = z0.reshape(self.shape)
        solved, points = [], []
        for first, end in cuts:
            begun, before = time.perf_counter(), self._spent[0]
            part = start[:, first:end]
            if points and self.start == "previous":
                part = _after(points[-1], part, layout.token_mask, first, end)
            piece = ChunkEvaluator(self.chunk(first, end), self.cache, part.shape, self._spent, self._apart)
            sol = how.solver.solve(piece, part.flatten(1), how.stop, layout_of(layout, first, end))
            if self.commit or end < self.shape[1]:
                y, self.cache = piece.commit(sol.z)
                self.outputs.append(y)
            if sol.cost.vjps or sol.cost.jvps:
                self._products = self._products + Cost(vjps=sol.cost.vjps, jvps=sol.cost.jvps)
            if self.sizes is not None:
                # read first: the device has then done what it is timed for
                passed = not bool(
                    torch.isin(
                        sol.status, torch.tensor(CUT_SHORT, dtype=sol.status.dtype, device=sol.status.device)
                    ).any()
                )
                seconds = time.perf_counter() - begun
                self.sizes.note(end - first, seconds=seconds, evaluations=self._spent[0] - before, passed=passed)
            solved.append(sol)
            points.append(sol.z.reshape(part.shape))
        return _joined(solved, torch.cat(points, dim=1).reshape(z0.shape))


@options(kw_only=True)
class ByChunks(Solve):
    """A solve that goes chunk after chunk, in place of a plain one within a call; it evaluates no f but its own.

    Args:
        walk: the way along the tokens.
    """

    walk: ChunkedSolve | WindowSolve

    def __call__(self, f: Map, z0: Tensor, layout: Layout | None = None) -> Solution:
        with torch.no_grad():
            return self.walk.go(self, z0, layout or Layout()).replace(solver=self.solver)


def _after(points: Tensor, start: Tensor, mask: Tensor | None, first: int, end: int) -> Tensor:
    """Return the last of ``points`` (B, l, ...) for tokens ``first`` to ``end``, masked ones at their start."""
    last = points[:, -1:].expand(start.shape)
    if mask is None:
        return last
    counts = mask[:, first:end].reshape(*start.shape[:2], *[1] * (start.dim() - 2))
    return torch.where(counts, last, start)


def _joined(parts: list[Solution], z: Tensor) -> Solution:
    if len(parts) == 1:
        return parts[0].replace(z=z, cost=Cost())

    def worst(name: str) -> Tensor:
        return torch.stack([getattr(part, name) for part in parts]).amax(0)

    traces = [part.trace for part in parts if part.trace is not None]
    by_token = [part.token_steps for part in parts if part.token_steps is not None]
    runaway = [part.runaway for part in parts if part.runaway is not None]
    status = worst("status")
    # made anew: what nobody said how to join is unknown of the whole, and not that of the first chunk
    return Solution(
        z=z,
        residual=worst("residual"),
        relative=worst("relative"),
        steps=torch.stack([part.steps for part in parts]).sum(0),
        status=status,
        cost=Cost(),
        trace=torch.cat(traces) if traces else None,
        token_steps=torch.cat(by_token, dim=1) if by_token else None,
        residual_of=parts[0].residual_of,
        runaway=None if not runaway else torch.stack(runaway).any(0) & (status == int(Status.DIVERGED)),
        solver=parts[0].solver,
    )
