"""The way of one call along its tokens, chunk after chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from deqlm.sequence.chunk_evaluator import ChunkEvaluator, ChunkMap, layout_of
from deqlm.sequence.chunk_size import ChunkSizeTuner
from deqlm_solvers import Cost, Layout, Solution, Solve, Status
from deqlm_solvers.core.cost import Count

__all__ = ["ChunkedSolve", "StartOf"]

StartOf = Literal["zero", "previous"]
CUT_SHORT = (int(Status.MAX_ITER), int(Status.STALLED))
"""Statuses of rows that shorter chunks might have solved."""


@dataclass(eq=False)
class ChunkedSolve:
    """The way of one call along its tokens, and what it has left so far.

    Attributes:
        chunk: see `deqlm.sequence.chunks.solve_chunks`.
        cuts: first token and end of each chunk.
        sizes: what is told of every chunk, where that decides about the next one; else None.
        shape: of the state, (B, L, ...).
        cache: what the tokens so far left.
        commit: whether the last chunk is committed too.
        start: where chunks start, see `deqlm.sequence.modes.Mode`.
        tries: evaluations of a short solve of all tokens that comes first, from whose points the chunks go on, or 0.
        outputs: f at the returned points, one tensor per committed chunk.
    """

    chunk: Callable[[int, int], ChunkMap]
    cuts: Iterable[tuple[int, int]]
    shape: torch.Size
    cache: Any
    commit: bool
    start: StartOf = "zero"
    tries: int = 0
    sizes: ChunkSizeTuner | None = None
    outputs: list[Tensor] = field(default_factory=list)
    _count: Count = field(default_factory=Count)
    _products: Cost = field(default_factory=Cost)
    _apart: set[tuple[bool, ...]] = field(default_factory=set)

    @property
    def cost(self) -> Cost:
        """Evaluations of chunks, those that commit included, and products with their Jacobians."""
        return self._products + self._count.cost()

    def go(self, how: Solve, z0: Tensor, layout: Layout) -> Solution:
        """Solve every chunk from its part of ``z0`` (B, N), committing in between; return them joined."""
        if not self.tries:
            return self._along(self.cuts, how, z0, layout)
        before = self.cache
        short = how.stop.replace(max_iter=min(how.stop.max_iter, self.tries))
        whole = self._along([(0, self.shape[1])], Solve(how.solver, short), z0, layout)
        done = bool(whole.converged.all())
        if done if layout.together is None else not layout.together.any(not done, z0.device):
            return whole
        self.cache = before
        self.outputs.clear()
        sol = self._along(self.cuts, how, whole.z, replace(layout, first=whole.first))
        return sol.replace(steps=sol.steps + whole.steps)

    def _along(self, cuts: Iterable[tuple[int, int]], how: Solve, z0: Tensor, layout: Layout) -> Solution:
        start = z0.reshape(self.shape)
        solved, points = [], []
        for first, end in cuts:
            begun, before = time.perf_counter(), self._count.calls
            part = start[:, first:end]
            if points and self.start == "previous":
                part = _after(points[-1], part, layout.token_mask, first, end)
            given = (self.chunk(first, end), self.cache, part.shape, self._count, self._apart)
            piece = ChunkEvaluator(*given, together=layout.together)
            sol = how.solver.solve(piece, part.flatten(1), how.stop, layout_of(layout, first, end))
            if self.commit or end < self.shape[1]:
                y, self.cache = piece.commit(sol.z, stepped=how.stop.is_budget)
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
                self.sizes.note(end - first, seconds=seconds, evaluations=self._count.calls - before, passed=passed)
            solved.append(sol)
            points.append(sol.z.reshape(part.shape))
        return _joined(solved, torch.cat(points, dim=1).reshape(z0.shape))


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
