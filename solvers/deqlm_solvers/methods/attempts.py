"""Attempts of several solvers on the rows that the ones before left unsolved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.core.agreement import rows_agree
from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation, Map, Solver
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.criterion import Criterion
from deqlm_solvers.loop.derivative import NoDerivativeError
from deqlm_solvers.loop.subset import SubsetMap, subset
from deqlm_solvers.loop.tracker import STILL_PASSES

__all__ = ["PROBES", "Search"]

PROBES = 3
"""Evaluations beyond the attempts: one at the answers so far, and at most two that tell whether f mixes rows."""


class Search:
    """The best answer of every row so far, and f as an attempt on some of the rows sees it.

    Args:
        f: the map on all rows.
        z0: the start, (B, N).
        stop, layout: of the solve.
        choices: names of the members.
    """

    def __init__(self, f: Map, z0: Tensor, stop: Stop, layout: Layout, choices: tuple[str, ...]) -> None:
        self.f = f
        self.z0 = z0
        self.stop = stop
        self.layout = layout
        self.choices = list(choices)
        self.found: Solution | None = None
        self.lost = Cost()
        self.obstacle: NoDerivativeError | str = ""
        self.traces: list[Tensor] = []
        self.probed: _Probe | None = None
        self.apart = False

    @property
    def sol(self) -> Solution:
        """The best answer so far."""
        assert self.found is not None
        return self.found

    def leave_out(self, index: int, why: NoDerivativeError | str) -> None:
        """Take note that a member cannot run."""
        self.obstacle = why
        told = why if isinstance(why, str) else "autograd cannot differentiate f"
        self.choices[index] += f" (left out: {told})"

    def run(self, index: int, member: Solver) -> None:
        """Run ``member``: the first on all rows, others on failed rows, from their best points and from z0."""
        try:
            if self.found is None:
                self._begin(index, member)
                return
            begun, sound = self.sol.z, self.z0.isfinite().all(1)
            self.attempt(index, member, begun, sound)
            self.attempt(index, member, self.z0, sound & (begun != self.z0).any(1))
        except NoDerivativeError as error:
            self.leave_out(index, error)

    def _begin(self, index: int, member: Solver) -> None:
        sol, _ = self._solve(member, self.f, self.z0, self.layout)
        self.found = sol.replace(picked=torch.full_like(sol.status, index))
        self.traces = [] if sol.trace is None else [sol.trace]
        self.first_steps = sol.steps

    def _solve(
        self, member: Solver, f: Map, start: Tensor, layout: Layout, whole: bool = False
    ) -> tuple[Solution, Cost]:
        """Return what ``member`` finds and its cost; what is lost where it cannot differentiate f is paid for too."""
        tally = _Tally(f, self.z0.shape[0] if whole else start.shape[0]) if member.steps_evaluate else None
        try:
            found = member.solve(tally or f, start, self.stop, layout)
        except NoDerivativeError:
            assert tally is not None
            self.lost = self.lost + tally.cost
            raise
        cost = found.cost
        return found, replace(cost, row_evaluations=cost.evaluations * self.z0.shape[0]) if whole else cost

    def attempt(self, index: int, member: Solver, start: Tensor, allowed: Tensor) -> None:
        """Run ``member`` from ``start`` (B, N) on failed rows that are ``allowed`` (B,), and keep what is better."""
        failed = ~self.sol.converged & allowed
        if not bool(failed.any()):
            return
        if self.probed is None:
            self.probed = _probe(self.f, self.sol.z, failed, bool(self.stop.compact))
            self.found = self.sol.replace(cost=self.sol.cost + self.probed.cost)
        # where rows are mixed, one that is left out would not stay solved
        here = torch.ones_like(failed) if self.probed.mixes else failed
        rows = here.nonzero().flatten()
        part, whole = self._restrict(rows)
        layout = _restrict_layout(replace(self.layout, first=self.sol.first), rows, start)
        self._take(index, rows, *self._solve(member, part, start.index_select(0, rows), layout, whole))

    def close(self) -> Solution:
        """Return the answer; raise where no member could run."""
        if self.found is None:
            if isinstance(self.obstacle, NoDerivativeError):
                raise self.obstacle
            raise ValueError(f"no member of fallback can run: {', '.join(self.choices)}")
        trace = torch.cat(self.traces) if self.traces else None
        if self.apart:
            self._review()
        return self.sol.replace(trace=trace, cost=self.sol.cost + self.lost, choices=tuple(self.choices))

    def _review(self) -> None:
        """Look at the answers of all rows together: f may mix rows more weakly than a probe sees."""
        inner = inner_dtype(self.z0.dtype)
        z = self.sol.z
        at = Evaluation(z.to(inner), self.f(z).to(inner))
        measure = Criterion(self.stop, self.layout, at.z)
        reading = measure(at if measure.masked is None else at.held(measure.masked))
        lost = self.sol.converged & (reading.ratio > STILL_PASSES)
        self.found = self.sol.replace(
            status=self.sol.status.masked_fill(lost, int(Status.MAX_ITER)),
            residual=torch.where(lost, reading.residual, self.sol.residual),
            relative=torch.where(lost, reading.relative, self.sol.relative),
            cost=self.sol.cost + Cost(evaluations=1, row_evaluations=z.shape[0]),
        )

    def _restrict(self, rows: Tensor) -> tuple[Map, bool]:
        """Return f on ``rows`` (K,), and whether it is evaluated on the whole batch for that."""
        assert self.probed is not None
        f, z = self.f, self.sol.z
        if rows.shape[0] == z.shape[0]:
            return f, False
        self.apart = True
        if self.probed.narrows and isinstance(f, SubsetMap):
            part = f.narrow(rows)
            if part is not None:
                return part, False
        return lambda some: f(z.index_copy(0, rows, some)).index_select(0, rows), True

    def _take(self, index: int, rows: Tensor, found: Solution, cost: Cost) -> None:
        """Merge what ``member`` found for ``rows`` into the answer."""
        assert self.probed is not None
        sol = self.sol
        before = sol.map_rows(lambda t, axis: t.index_select(axis, rows))
        new, old = _closeness(found, self.stop), _closeness(before, self.stop)
        # the earlier answer wins a tie
        better = ~before.converged & (found.converged | (new > old))
        if self.probed.mixes:
            more = found.converged.sum() - before.converged.sum()
            better = ((more > 0) | ((more == 0) & (new.min() > old.min()))).expand_as(better)

        def merge(every: Tensor, some: Tensor) -> Tensor:
            here = better.view(-1, *[1] * (some.dim() - 1))
            return every.index_copy(0, rows, torch.where(here, some, every.index_select(0, rows)))

        token_steps = None
        if sol.token_steps is not None and found.token_steps is not None:
            later = found.token_steps + before.steps[:, None]
            token_steps = merge(sol.token_steps, torch.where(found.token_steps > 0, later, 0))
        found = found.replace(picked=torch.full_like(found.status, index))
        self.found = sol.merge_rows(found, merge).replace(
            z=merge(sol.z, found.z),
            steps=sol.steps.index_add(0, rows, found.steps),
            token_steps=token_steps,
            cost=sol.cost + cost,
        )
        if found.trace is not None:
            self._extend_trace(rows, found)

    def _extend_trace(self, rows: Tensor, found: Solution) -> None:
        if len(self.traces) == 1:
            self.traces[0] = _trimmed(self.traces[0], self.first_steps)
        assert found.trace is not None
        part = _trimmed(found.trace, found.steps)
        whole = self.traces[-1][-1].expand(part.shape[0], -1)
        self.traces.append(whole.index_copy(1, rows, part))


class _Tally:
    """f with its calls counted, for members that may end without a solution to count them.

    Args:
        f: the map.
        rows: how many rows of the batch one call evaluates.
    """

    def __init__(self, f: Map, rows: int) -> None:
        self.f = f
        self.rows = rows
        self.calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        return self.f(z)

    @property
    def cost(self) -> Cost:
        return Cost(evaluations=self.calls, row_evaluations=self.calls * self.rows)


class _Probe(NamedTuple):
    """Whether f can be had on some rows, whether it mixes them, and what it cost to find out."""

    narrows: bool
    mixes: bool
    cost: Cost


def _probe(f: Map, z: Tensor, failed: Tensor, compact: bool) -> _Probe:
    """Look at f at ``z`` (B, N): narrowed to the ``failed`` rows (B,), else with these rows moved far away.

    With ``compact`` False f is not to be narrowed.
    """
    count = z.shape[0]
    if count == 1:
        return _Probe(False, False, Cost())
    moved = failed
    if bool(failed.all()):
        moved = torch.arange(count, device=z.device) >= count // 2
    rows, watched = moved.nonzero().flatten(), (~moved).nonzero().flatten()
    fz = f(z)
    cost = Cost(evaluations=1, row_evaluations=count)
    before = fz.index_select(0, watched)
    if compact and isinstance(f, SubsetMap) and f.narrow(rows) is not None:
        cost = cost + Cost(evaluations=1, row_evaluations=rows.shape[0])
        if subset(f, rows, z, fz) is not None:
            return _Probe(True, False, cost)
    away = z.nan_to_num().index_select(0, rows)
    cost = cost + Cost(evaluations=1, row_evaluations=count)
    try:
        after = f(z.index_copy(0, rows, away + 1 + away.abs())).index_select(0, watched)
    except Exception:
        # f refuses the points that the probe made up, which tells nothing: all rows stay
        return _Probe(False, True, cost)
    return _Probe(False, not bool(rows_agree(after, before).all()), cost)


def _restrict_layout(layout: Layout, rows: Tensor, z: Tensor) -> Layout:
    """Return the layout of ``rows`` (K,) alone, of states like ``z`` (B, N)."""
    if rows.shape[0] == z.shape[0]:
        return layout

    def narrow(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.to(rows.device).index_select(0, rows)

    rounding = layout.round
    return replace(
        layout,
        scale=narrow(layout.scale),
        token_mask=narrow(layout.token_mask),
        first=None if layout.first is None else layout.first.index_select(1, rows),
        round=None if rounding is None else _restrict_rounding(rounding, rows, z.shape[0]),
    )


def _restrict_rounding(rounding: Callable[[Tensor], Tensor], rows: Tensor, count: int) -> Callable[[Tensor], Tensor]:
    """Return the rounding of all ``count`` rows as one of ``rows`` (K,) alone."""

    def round_rows(some: Tensor) -> Tensor:
        every = some.new_zeros(count, some.shape[1]).index_copy(0, rows, some)
        return rounding(every).index_select(0, rows)

    return round_rows


def _closeness(sol: Solution, stop: Stop) -> Tensor:
    """Return tolerance over residual per row, (K,), >= 1 where it passes.

    With per="token" or "leaf" and both tolerances set, which group is the worst depends on the tolerance; the worst
    residual and the worst relative one are then taken together.
    """
    near = (stop.atol / sol.residual + stop.rtol / sol.relative).nan_to_num(nan=torch.inf, posinf=torch.inf)
    # a row that ran away is near its tolerance by its size only
    return near if sol.runaway is None else near.clamp_max(1.0).where(sol.runaway, near)


def _trimmed(trace: Tensor, steps: Tensor) -> Tensor:
    """Return the trace (evaluations, K) up to the evaluation in which its last row was done."""
    return trace[: int(steps.max())]
