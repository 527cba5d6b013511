"""The solve as asked, plain iteration, stronger methods, other starts: what each of them reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from deqlm.diagnostics.diagnosis.contraction import Contraction
from deqlm.diagnostics.diagnosis.findings import PathDependence, Plain, Trend
from deqlm.diagnostics.diagnosis.growth import Start
from deqlm.diagnostics.diagnosis.subject import Subject
from deqlm.diagnostics.diagnosis.suggestion import Suggestion
from deqlm.diagnostics.diagnosis.wraps import Wrap
from deqlm.reporting.blame import blame
from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solution, Solve, Status, Stop
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.loop.criterion import Criterion
from deqlm_solvers.loop.runaway import FALLEN

__all__ = ["Outcome", "Point", "compare_starts", "judged", "rescue", "solve_as_asked", "solve_plainly", "solves"]

LOOSE = 1e-3
"""Relative tolerance above which two solutions may be one, badly solved."""


@dataclass
class Point:
    """The best points known, (B, N), and which of them solve their row."""

    z: Tensor
    solved: Tensor


class Outcome(NamedTuple):
    """The solve under examination, flat: one entry per row."""

    z: Tensor
    status: Tensor
    passed: Tensor
    steps: Tensor
    residual: Tensor
    relative: Tensor
    trace: Tensor | None
    runaway: Tensor


def judged(stop: Stop) -> Stop:
    """Return the stop whose tolerance rows are judged by: the user's, or the default one for a budget."""
    return stop.replace(rtol=Stop().rtol) if stop.is_budget else stop


def testing(stop: Stop, max_iter: int) -> Stop:
    """Return a stop with the same tolerance and norm and another length, which gives no row up early."""
    made = Stop(max_iter=max_iter, rtol=stop.rtol, atol=stop.atol, norm=stop.norm)
    return made.replace(per=stop.per, token_dim=stop.token_dim)


def solve_as_asked(subject: Subject, stop: Stop, begun: Start, wrap: Wrap | None) -> tuple[Outcome, str | None]:
    """Return the outcome of the user's own solve, and the error that ended it, if one did.

    Args:
        subject: what is solved.
        stop: the tolerance that rows are judged by, which is not the user's own for a budget.
        begun: the start of every row.
        wrap: what f needs to be solved at all.
    """
    rows = subject.rows
    try:
        sol = subject.solve(Suggestion("", {}, wrap), trace=True)
    except Exception as error:  # f may raise anything; that is a finding
        blank = torch.full((rows.count,), torch.inf, dtype=torch.float64, device="cpu")
        status = torch.full((rows.count,), int(Status.MAX_ITER), dtype=torch.int8, device="cpu")
        nothing = torch.zeros(rows.count, dtype=torch.bool, device="cpu")
        steps = torch.zeros(rows.count, dtype=torch.int64, device="cpu")
        outcome = Outcome(rows.z0.detach().clone(), status, nothing, steps, blank, blank, None, nothing)
        where = blame(error)
        return outcome, f"{type(error).__name__}: {error}" + (f" ({where})" if where else "")
    return _outcome(subject, sol, stop, begun), None


def _outcome(subject: Subject, sol: Solution, stop: Stop, begun: Start) -> Outcome:
    rows = subject.rows
    z = rows.pack(sol.z).detach()
    status, residual, relative = (t.detach().flatten().cpu() for t in (sol.status, sol.residual, sol.relative))
    passed = status == int(Status.CONVERGED)
    fz = _value(subject, z)
    if subject.how.stop.is_budget and fz is not None:
        reading = Criterion(stop, subject.layout, z)(Evaluation(z, fz))
        residual, relative, passed = reading.residual.cpu(), reading.relative.cpu(), (reading.ratio <= 1).cpu()
    runaway = torch.zeros_like(passed) if fz is None else begun.ran_away(sol.replace(z=z), fz).cpu()
    status = torch.where(passed & runaway, int(Status.DIVERGED), status)
    trace = None if sol.trace is None else sol.trace.detach().reshape(len(sol.trace), rows.count).cpu()
    return Outcome(z, status, passed & ~runaway, sol.steps.flatten().cpu(), residual, relative, trace, runaway)


def _value(subject: Subject, z: Tensor) -> Tensor | None:
    """Return f(z), or None where f raises there."""
    try:
        return subject.held(z)
    except Exception:  # a solve may return a point that f refuses
        return None


def solves(subject: Subject, sol: Solution, begun: Start) -> bool:
    """Say whether a solution in the user's form solves every row, and none by running away."""
    z = subject.rows.pack(sol.z).detach()
    fz = _value(subject, z)
    return bool(sol.converged.all()) and fz is not None and not bool(begun.ran_away(sol.replace(z=z), fz).any())


def solve_plainly(
    subject: Subject, z0: Tensor, stop: Stop, begun: Start, evaluations: int
) -> tuple[Plain | None, Point]:
    """Iterate z <- f(z), and look at the end of it."""
    limit = 1e12 if z0.dtype == torch.float64 else 1e10
    until = testing(stop, evaluations).replace(trace=True, divergence=limit)
    held = subject.held
    try:
        sol = Solve(FixedPoint(), until)(held, z0, subject.layout)
        assert held.last is not None and sol.trace is not None
        z = held.last
        fz = held(z)
        step, double = fz - z, held(fz) - z
        before, reached = held(z0), held(sol.z)
    except Exception:  # f may raise anything; that is a finding of the solve itself
        return None, Point(z0, torch.zeros(len(z0), dtype=torch.bool, device=z0.device))
    converged = sol.converged & ~begun.ran_away(sol, reached)
    curves = [curve[: max(1, int(n))] for curve, n in zip(sol.trace.T.tolist(), sol.steps.tolist(), strict=True)]
    cycle = (row_norms(double) / row_norms(step).clamp_min(1e-300)).nan_to_num(torch.inf)
    plain = Plain(
        converged=tuple(converged.tolist()),
        steps=tuple(sol.steps.tolist()),
        trace=tuple(tuple(curve) for curve in curves),
        trend=tuple(_trend(curve) for curve in curves),
        cycle=tuple(cycle.tolist()),
        size=tuple(row_norms(fz).tolist()),
        largest=tuple(row_norms(before).tolist()),
        growth=tuple(begun.growth(z, fz).tolist()),
        fallen=tuple(_fell(curve) for curve in curves),
    )
    return plain, Point(sol.z, converged)


def _fell(curve: list[float]) -> bool:
    """Say whether the last residual is at most half of the largest so far."""
    return math.isfinite(curve[-1]) and curve[-1] <= FALLEN * max(r for r in curve if math.isfinite(r))


def _trend(curve: list[float]) -> Trend:
    finite = [r for r in curve if math.isfinite(r)]
    if len(finite) < len(curve) or not finite:
        blown = len(finite) > 1 and max(finite) > 1e3 * finite[0]
        return "rising" if blown else "nonfinite"
    quarter = max(1, len(finite) // 4)
    early, late = _median(finite[quarter : 2 * quarter] or finite[:1]), _median(finite[-quarter:])
    return "rising" if late > 1.5 * early else "falling" if late < 0.67 * early else "flat"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def rescue(subject: Subject, z0: Tensor, stop: Stop, begun: Start, points: list[Point]) -> Point:
    """Return, row by row, the solution of the first attempt that has one, with more methods tried if need be."""
    best = Point(points[0].z.clone(), points[0].solved.to(z0.device).clone())
    best.z = torch.where(best.z.isfinite().all(1, keepdim=True), best.z, z0)
    until = testing(stop, max(200, stop.max_iter))

    def take(point: Point) -> None:
        new = point.solved.to(z0.device) & ~best.solved
        best.z = torch.where(new[:, None], point.z, best.z)
        best.solved |= new

    take(points[1])
    for solver in (Anderson(), Broyden()):
        if bool(best.solved.all()):
            break
        try:
            sol = Solve(solver, until)(subject.held, z0, subject.layout)
            value = subject.held(sol.z)
            # a method that tries wild points has seen large residuals, and half of those is no progress
            astray = begun.ran_away(sol, value) | begun.no_better(sol.z, value)
        except Exception:  # the solve itself tells what f raises
            break
        take(Point(sol.z, sol.converged & ~astray))
    return best


def compare_starts(
    subject: Subject,
    outcome: Outcome,
    stop: Stop,
    begun: Start,
    starts: int,
    contraction: Contraction | None,
    draw: torch.Generator,
) -> PathDependence:
    """Solve from the given start and from random ones around the solution, and compare.

    Within a loose tolerance solutions cannot be told apart, so a sharper one is taken there.
    """
    z = outcome.z
    scale = float(row_norms(z.reshape(1, -1))) / max(1, z.numel()) ** 0.5 or 1.0
    sharper = _sharper(subject, stop)
    tried = Suggestion("") if sharper is None else Suggestion("", {"stop": sharper})
    stop = stop if sharper is None else sharper
    ends = [(z.double(), outcome.passed)] if sharper is None else []
    for k in range(starts - len(ends)):
        noise = torch.randn(z.shape, generator=draw, dtype=torch.float64, device="cpu").to(z.device)
        start = (z.double() + (0 if k == 0 and sharper else 3 if k % 2 else 1) * scale * noise).to(z.dtype)
        start = start if subject.masked is None else torch.where(subject.masked, z, start)
        try:
            other = _outcome(subject, subject.solve(tried, start=start), stop, begun)
        except Exception:  # f may raise anything far away; that start finds nothing
            continue
        ends.append((other.z.double(), other.passed))
    tolerance = Criterion(Stop(rtol=stop.rtol, atol=stop.atol), Layout(), z).tolerance(row_norms(subject.held(z))).cpu()
    distance = 0.0
    for (a, ended_a), (b, ended_b) in combinations(ends, 2):
        apart = (row_norms(a - b).cpu() / tolerance)[ended_a & ended_b]
        distance = max([distance, *apart.tolist()])
    kappa = max([1.0, *(k for k in (contraction.kappa if contraction else ()) if math.isfinite(k))])
    return PathDependence(
        starts=starts,
        converged=sum(int(ended.sum()) for _, ended in ends),
        asked=starts * len(z),
        distance=distance,
        expected=2 * kappa,
    )


def _sharper(subject: Subject, stop: Stop) -> Stop | None:
    """Return the stop of the solve with a tolerance that tells solutions apart; None where its own does."""
    if stop.atol > 0 or stop.rtol <= LOOSE or subject.how.stop.is_budget:
        return None
    return testing(stop, max(10 * stop.max_iter, 1000)).replace(rtol=LOOSE)
