"""Several solvers, one after another, for the rows that need them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.checks import require
from deqlm_solvers.frame import Frame
from deqlm_solvers.narrow import NarrowMap, narrowed
from deqlm_solvers.options import options
from deqlm_solvers.solution import Cost, Solution
from deqlm_solvers.solver import SOLVERS, Map, Solver, register_solver
from deqlm_solvers.stop import Stop

__all__ = ["Fallback"]

DEFAULT = ("anderson", "broyden", "fixed_point")
PROBES = 3
"""Evaluations beyond the attempts: one at the answers so far, and at most two that tell whether f mixes rows."""


@register_solver("fallback")
@options
class Fallback(Solver):
    """Try solvers one after another, each on the rows that the ones before left unsolved.

    For batches in which rows need different methods, and for whoever wants an answer whatever it costs: every row is
    solved that some member solves alone. The first member runs on the whole batch. Each further one runs on the failed
    rows, from their best point so far and, where that fails, once more from z0. A row returns the point with the
    smallest residual relative to its tolerance over all attempts, and the status of that attempt; `Solution.picked`
    says which member found it. A row that converged is never touched again: it has the bits that the first member gives
    it without the others.

    ``Stop.max_iter`` is the budget of one attempt. There are at most 2 m - 1 attempts of m members, and with the
    evaluations that look at f, 2 m max_iter evaluations in all. Where f offers `NarrowMap.narrow` and does not mix
    rows, it is evaluated on failed rows only (unless ``Stop(compact=False)``). Otherwise finished rows are held at
    their solution and paid for. Where f mixes rows, the answers of several attempts do not fit together: members run on
    the whole batch, and the attempt that solved most rows is returned whole (then the one whose worst row is best).

    A row whose z0 is not finite is left to the first member. ``steps`` of a row are summed over the attempts that it
    took part in, ``token_steps`` counts on from there; ``trace`` is that of all attempts one after another, each up to
    the evaluation in which its last row was done, and a row that takes no part repeats its last residual.

    A function among a member's options, such as that of ``Newton(jacobian=...)``, is given the failed rows only.
    Members that differentiate f are no part of the default: on an f without derivative they raise.

    Args:
        members: at least one solver, each an object, a registered name or a dict with ``name`` and options; none
            twice, and no `Fallback`, whose members can be listed instead. None given: "anderson", "broyden",
            "fixed_point".
        solvers: the same by keyword, for `from_dict` and `replace`.

    Raises:
        KeyError: an unknown name.
        TypeError: a member that is no solver.
        ValueError: no member, one twice, or a `Fallback`; in a solve, a budget (rtol=0, atol=0), which tests nothing,
            or max_iter < 3.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Fallback, Solve, Stop
        >>> gain = torch.tensor([[0.5], [-3.0]])
        >>> solve = Solve(Fallback("fixed_point", "anderson"), Stop(rtol=1e-5))
        >>> sol = solve(lambda z: gain * z + 1, torch.zeros(2, 1))
        >>> sol.converged.tolist(), [sol.choices[i] for i in sol.picked]
        ([True, True], ['fixed_point', 'anderson'])
    """

    solvers: tuple[Solver, ...] = ()

    guarantees: ClassVar[frozenset[str]] = frozenset({"known_answers", "rows", "check_every", "half"})
    honours: ClassVar[frozenset[str]] = frozenset(Stop.__dataclass_fields__) - {"keep"}  # type: ignore[attr-defined]

    def __init__(
        self,
        *members: str | Mapping[str, Any] | Solver,
        solvers: Iterable[str | Mapping[str, Any] | Solver] | None = None,
    ) -> None:
        if members and solvers is not None:
            raise TypeError("Fallback got its members twice, by position and as solvers=")
        given = members or (DEFAULT if solvers is None else tuple(solvers))
        made = tuple(SOLVERS.make(member) for member in given)
        require(len(made) > 0, "solvers", made, "at least one solver")
        for i, member in enumerate(made):
            nested = isinstance(member, Fallback)
            require(not nested, "solvers", member, "solvers that are no Fallback; list the members of that one")
            require(member not in made[:i], "solvers", member, "without a repetition")
        object.__setattr__(self, "solvers", made)
        object.__setattr__(self, "honours", self.honours.intersection(*(member.honours for member in made)))
        object.__setattr__(self, "steps_evaluate", any(member.steps_evaluate for member in made))
        object.__setattr__(self, "attempts", 1 if len(made) == 1 else 2 * len(made))

    def rehearsable(self) -> bool:
        return all(member.rehearsable() for member in self.solvers)

    def solve(self, f: Map, z0: Tensor, stop: Stop, frame: Frame) -> Solution:
        if stop.is_budget:
            raise ValueError("fallback cannot run a budget (rtol=0, atol=0), which tests nothing; set rtol or atol")
        first, *others = self.solvers
        if others:
            require(stop.max_iter >= PROBES, "max_iter", stop.max_iter, f">= {PROBES} for fallback")
        with torch.no_grad():
            search = _Search(f, stop, frame, first.solve(f, z0, stop, frame), _labels(self.solvers))
            sound = z0.isfinite().all(1)
            for index, member in enumerate(others, 1):
                begun = search.sol.z
                search.attempt(index, member, begun, sound)
                elsewhere = (begun != z0).any(1)
                search.attempt(index, member, z0, sound & elsewhere)
            return search.close()


class _Search:
    """The best answer of every row so far, and f as an attempt on some of the rows sees it.

    Args:
        f: the map on all rows.
        stop, frame: of the solve.
        first: solution of the first member.
        choices: names of the members.
    """

    def __init__(self, f: Map, stop: Stop, frame: Frame, first: Solution, choices: tuple[str, ...]) -> None:
        self.f = f
        self.stop = stop
        self.frame = frame
        self.sol = first.replace(picked=torch.zeros_like(first.status), choices=choices)
        self.traces = [] if first.trace is None else [first.trace]
        self.first_steps = first.steps
        self.probed: _Probe | None = None

    def attempt(self, index: int, member: Solver, start: Tensor, allowed: Tensor) -> None:
        """Run ``member`` from ``start`` (B, N) on failed rows that are ``allowed`` (B,), and keep what is better."""
        failed = ~self.sol.converged & allowed
        if not bool(failed.any()):
            return
        if self.probed is None:
            self.probed = _probe(self.f, self.sol.z, failed, bool(self.stop.compact))
            self.sol = self.sol.replace(cost=self.sol.cost + self.probed.cost)
        # where rows are mixed, one that is left out would not stay solved
        here = torch.ones_like(failed) if self.probed.mixes else failed
        rows = here.nonzero().flatten()
        part, whole = self._restrict(rows)
        found = member.solve(part, start.index_select(0, rows), self.stop, _restrict_frame(self.frame, rows, start))
        cost = found.cost
        if whole:
            cost = replace(cost, row_evaluations=cost.evaluations * start.shape[0])
        self._take(index, rows, found, cost)

    def close(self) -> Solution:
        """Return the answer."""
        return self.sol.replace(trace=torch.cat(self.traces) if self.traces else None)

    def _restrict(self, rows: Tensor) -> tuple[Map, bool]:
        """Return f on ``rows`` (K,), and whether it is evaluated on the whole batch for that."""
        assert self.probed is not None
        f, z = self.f, self.sol.z
        if rows.shape[0] == z.shape[0]:
            return f, False
        if self.probed.narrows and isinstance(f, NarrowMap):
            part = f.narrow(rows)
            if part is not None:
                return part, False
        return lambda some: f(z.index_copy(0, rows, some)).index_select(0, rows), True

    def _take(self, index: int, rows: Tensor, found: Solution, cost: Cost) -> None:
        """Merge what ``member`` found for ``rows`` into the answer."""
        assert self.probed is not None
        sol = self.sol
        before = _pick(sol, rows)
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
        self.sol = sol.replace(
            z=merge(sol.z, found.z),
            residual=merge(sol.residual, found.residual),
            relative=merge(sol.relative, found.relative),
            status=merge(sol.status, found.status),
            steps=sol.steps.index_add(0, rows, found.steps),
            picked=merge(sol.picked, torch.full_like(found.status, index)),  # pyright: ignore[reportArgumentType]
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
    if compact and isinstance(f, NarrowMap) and f.narrow(rows) is not None:
        cost = cost + Cost(evaluations=1, row_evaluations=rows.shape[0])
        if narrowed(f, rows, z, fz) is not None:
            return _Probe(True, False, cost)
    away = z.nan_to_num().index_select(0, rows)
    after = f(z.index_copy(0, rows, away + 1 + away.abs())).index_select(0, watched)
    return _Probe(False, not _agree(before, after), cost + Cost(evaluations=1, row_evaluations=count))


def _agree(a: Tensor, b: Tensor) -> bool:
    """Say whether two evaluations of the same rows (K, N) are the same up to what a kernel may round otherwise."""
    slack = min(1e3 * torch.finfo(a.dtype).eps, 0.05)
    near = torch.isclose(a, b, rtol=slack, atol=0.0, equal_nan=True)
    apart = torch.where(near, 0.0, b - a)
    size = torch.linalg.vector_norm(a.nan_to_num(), dim=1, dtype=torch.float64)
    return bool((torch.linalg.vector_norm(apart, dim=1, dtype=torch.float64) <= slack * size).all())


def _restrict_frame(frame: Frame, rows: Tensor, z: Tensor) -> Frame:
    """Return the frame of ``rows`` (K,) alone, of states like ``z`` (B, N)."""
    if rows.shape[0] == z.shape[0]:
        return frame

    def narrow(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.to(rows.device).index_select(0, rows)

    snap = frame.snap
    return replace(
        frame,
        scale=narrow(frame.scale),
        token_mask=narrow(frame.token_mask),
        snap=None if snap is None else _restrict_snap(snap, rows, z.shape[0]),
    )


def _restrict_snap(snap: Callable[[Tensor], Tensor], rows: Tensor, count: int) -> Callable[[Tensor], Tensor]:
    """Return the rounding of all ``count`` rows as one of ``rows`` (K,) alone."""

    def snap_rows(some: Tensor) -> Tensor:
        every = some.new_zeros(count, some.shape[1]).index_copy(0, rows, some)
        return snap(every).index_select(0, rows)

    return snap_rows


def _pick(sol: Solution, rows: Tensor) -> Solution:
    """Return residuals, status and steps of ``rows`` (K,)."""
    residual, relative, status, steps = (
        t.index_select(0, rows) for t in (sol.residual, sol.relative, sol.status, sol.steps)
    )
    return Solution(z=None, residual=residual, relative=relative, steps=steps, status=status)


def _closeness(sol: Solution, stop: Stop) -> Tensor:
    """Return tolerance over residual per row, (K,), >= 1 where it passes.

    With per="token" or "leaf" and both tolerances set, which group is the worst depends on the tolerance; the worst
    residual and the worst relative one are then taken together.
    """
    return (stop.atol / sol.residual + stop.rtol / sol.relative).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _trimmed(trace: Tensor, steps: Tensor) -> Tensor:
    """Return the trace (evaluations, K) up to the evaluation in which its last row was done."""
    return trace[: int(steps.max())]


def _labels(solvers: tuple[Solver, ...]) -> tuple[str, ...]:
    """Return the names of the members; where one occurs twice, with the options that differ from their defaults."""
    counts = Counter(solver.name or type(solver).__name__ for solver in solvers)
    labels = []
    for solver in solvers:
        name = solver.name or type(solver).__name__
        told = []
        if counts[name] > 1:
            told = [
                f"{key}={getattr(solver, key)!r}"
                for key, field in solver.__dataclass_fields__.items()  # type: ignore[attr-defined]
                if getattr(solver, key) != field.default
            ]
        labels.append(f"{name}({', '.join(told)})" if told else name)
    return tuple(labels)
