"""Solves a causal map in a window that slides with each row's first token that has not converged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deqlm.sequence.chunk_evaluator import ChunkEvaluator, ChunkMap
from deqlm.sequence.frozen_prefix import FrozenPrefix
from deqlm_solvers import Cost, FixedPoint, Layout, Solution, Solve, Stop
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.cost import Count
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.loop.criterion import Criterion
from deqlm_solvers.loop.subset import subset

__all__ = ["WindowSolve", "check_slide"]


def check_slide(how: Solve) -> None:
    """Raise unless a sliding window can do what a solve asks for.

    Raises:
        ValueError: another solver than `FixedPoint`, a budget, or a field of `Stop` that would be ignored.
    """
    solver, stop = how.solver, how.stop
    require(type(solver) is FixedPoint, "solver", solver, "FixedPoint with mode Frontier, which keeps no history")
    require(not stop.is_budget, "stop", stop, "a tolerance with mode Frontier, which tests every token")
    for name in ("keep", "test_every", "check_every", "patience", "trace", "collective"):
        default = Stop.__dataclass_fields__[name].default  # type: ignore[attr-defined]
        require(getattr(stop, name) == default, name, getattr(stop, name), f"{default!r} with mode Frontier")


@dataclass(eq=False)
class WindowSolve:
    """The way of one call along its tokens in a sliding window; see `deqlm.sequence.modes.Frontier` and `FrozenPrefix`.

    An evaluation takes the tokens from the first that is not committed to the end of the farthest window, of the rows
    that do not wait; tokens outside of their row's window keep their points.

    Attributes:
        chunk: see `deqlm.sequence.chunks.solve_chunks`.
        window: tokens.
        shape: of the state, (B, L, ...).
        cache: what the committed tokens left.
        commit: whether the last tokens are committed too.
        outputs: f at the returned points, one tensor per commit.

    Private: ``_leave`` says whether rows may wait outside of the batch, ``_waited`` whether some did.
    """

    chunk: Callable[[int, int], ChunkMap]
    window: int
    shape: torch.Size
    cache: Any
    commit: bool
    outputs: list[Tensor] = field(default_factory=list)
    _count: Count = field(default_factory=Count)
    _pieces: dict[Any, ChunkEvaluator] = field(default_factory=dict)
    _measures: dict[int, Criterion] = field(default_factory=dict)
    _leave: bool = True
    _waited: bool = False
    _apart: set[tuple[bool, ...]] = field(default_factory=set)

    @property
    def cost(self) -> Cost:
        """Evaluations, those that commit and the one that probes whether rows may wait outside included."""
        return self._count.cost()

    def go(self, how: Solve, z0: Tensor, layout: Layout) -> Solution:
        """Solve from ``z0`` (B, N); every token's point is that of the evaluation that froze it."""
        batch, length = self.shape[:2]
        inner = inner_dtype(z0.dtype)
        z = z0.reshape(batch, length, z0.shape[1] // length).to(inner, copy=True)
        prefix = FrozenPrefix(batch, length, self.window, how.stop, layout.token_mask)
        solver: FixedPoint = how.solver  # type: ignore[assignment]
        self._leave = bool(how.stop.compact)
        while True:
            if (low := prefix.committable()) > prefix.base:
                self._commit(z[:, prefix.base : low].to(z0.dtype), prefix, low, how.stop, layout)
                prefix.base = low
            if prefix.base == length:
                break
            rows, first, end = prefix.turn()
            part = z[:, first:end].to(z0.dtype)
            point = part.flatten(1)
            version = point._version
            fz, kept = self._evaluate(point, None if len(rows) == batch else rows, first, end)
            if point._version != version:
                raise ValueError("f wrote into its argument in place; return a new tensor (z.clone() first, or z + 1)")
            here = part.to(inner) if kept is None else part.index_select(0, kept).to(inner)
            at = Evaluation(here.reshape(fz.shape), fz.to(inner))
            r = at.r.reshape(here.shape)
            readings = torch.stack(self._measure(end - first, how.stop, layout, point).groups(at)).cpu().numpy()
            if kept is None and len(rows) < batch:
                readings = readings[:, rows]
            moves, fresh = prefix.take(readings, rows, first, end)
            step = r * solver.damping
            if solver.first_damping is not None:
                step = torch.where(self._mask(fresh, rows, kept, z), r * solver.first_damping, step)
            after = torch.where(self._mask(moves, rows, kept, z), here + step, here)
            if kept is None:
                z[:, first:end] = after
            else:
                z[kept, first:end] = after
        residual, relative, steps, status, token_steps, runaway = (t.to(z.device) for t in prefix.summary())
        return Solution(
            z=z.to(z0.dtype).reshape(z0.shape),
            residual=residual,
            relative=relative,
            steps=steps,
            status=status,
            token_steps=token_steps,
            runaway=runaway,
        )

    def _evaluate(self, point: Tensor, rows: Any, first: int, end: int) -> tuple[Tensor, Tensor | None]:
        """Return f at ``point`` (B, l N), of ``rows`` alone where they can be had alone, and the rows that it is of."""
        whole = self._piece(first, end)
        if rows is None or not self._leave:
            return whole(point), None
        index = torch.from_numpy(rows).to(point.device)
        if not whole.apart:
            fz = whole(point)
            self._leave = subset(whole, index, point, fz) is not None
            return fz, None
        key = (first, end, rows.tobytes())
        if key not in self._pieces:
            part = whole.narrow(index)
            assert part is not None, "rows that can be left out of one chunk can be left out of all"
            self._pieces = {(first, end): whole, key: part}
        self._waited = True
        return self._pieces[key](point.index_select(0, index)), index

    def _piece(self, first: int, end: int) -> ChunkEvaluator:
        if (first, end) not in self._pieces:
            shape = torch.Size((self.shape[0], end - first, *self.shape[2:]))
            made = ChunkEvaluator(self.chunk(first, end), self.cache, shape, self._count, self._apart)
            self._pieces = {(first, end): made}
        return self._pieces[first, end]

    def _commit(self, z: Tensor, prefix: FrozenPrefix, low: int, stop: Stop, layout: Layout) -> None:
        """Commit tokens up to ``low``, at their points ``z`` (B, l, N); look at all rows where some had waited."""
        first, commits = prefix.base, low < self.shape[1] or self.commit
        if not commits and not self._waited:
            return
        point = z.flatten(1)
        y, cache = self._piece(first, low).commit(point)
        if self._waited:
            # rows were tested while others were elsewhere, and the map may mix rows more weakly than a probe sees
            inner = inner_dtype(z.dtype)
            at = Evaluation(point.to(inner), y.reshape(point.shape).to(inner))
            ratios = self._measure(low - first, stop, layout, point).groups(at)[2]
            prefix.review(ratios.cpu().numpy(), first, low)
        if commits:
            self.cache = cache
            self.outputs.append(y)
        self._pieces = {}

    def _measure(self, length: int, stop: Stop, layout: Layout, point: Tensor) -> Criterion:
        if length not in self._measures:
            assert layout.leaves is not None
            shapes = ((length, *layout.leaves[0][1:]),)
            self._measures[length] = Criterion(stop, replace(layout, leaves=shapes, token_mask=None), point)
        return self._measures[length]

    def _mask(self, chosen: Any, rows: Any, kept: Tensor | None, z: Tensor) -> Tensor:
        """Return which tokens are ``chosen`` (rows, l), as (B or K, l, 1) beside the evaluated ones."""
        mask = torch.from_numpy(chosen)
        if kept is None and len(rows) < self.shape[0]:
            mask = mask.new_zeros(self.shape[0], mask.shape[1]).index_copy_(0, torch.from_numpy(rows), mask)
        return mask[..., None].to(z.device)
