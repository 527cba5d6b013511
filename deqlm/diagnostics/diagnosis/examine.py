"""Gather the findings on one solve: probes of the map, the solve itself, plain iteration, contraction, backward."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from deqlm.diagnostics.diagnosis.attempts import (
    Outcome,
    Point,
    compare_starts,
    judged,
    rescue,
    solve_as_asked,
    solve_plainly,
)
from deqlm.diagnostics.diagnosis.contraction import Contraction, measure_contraction
from deqlm.diagnostics.diagnosis.findings import Backward, Findings, Plain
from deqlm.diagnostics.diagnosis.growth import Start, probe_skip
from deqlm.diagnostics.diagnosis.jacobian import Jacobian
from deqlm.diagnostics.diagnosis.parts import Parts, find_parts
from deqlm.diagnostics.diagnosis.probes import (
    noise_floor,
    probe_causality,
    probe_in_place,
    probe_mixing,
    probe_randomness,
)
from deqlm.diagnostics.diagnosis.subject import Subject
from deqlm.gradients import Gradient, Implicit
from deqlm.gradients.linear_solve import LinearSystem, solve_cotangent
from deqlm_solvers import Layout, Options, Solver, Status, Stop, options
from deqlm_solvers.core.checks import number, require, whole
from deqlm_solvers.core.norms import row_norms

__all__ = ["Examined", "Probes", "examine"]

T = TypeVar("T")


@options
class Probes(Options):
    """How much a diagnosis looks at.

    Args:
        krylov: steps of Arnoldi and of power iteration (products with the Jacobian, each about two evaluations of f).
        dense: form the Jacobian, by N products, where a row has at most so many unknowns N; 0 never does.
        rows: rows whose Jacobian is examined, those that failed first.
        plain: evaluations of plain iteration.
        starts: starts for path dependence; 1 looks at none but the given one.
        suggest: try what is suggested: True, False, or "auto", which starts no trial after ``seconds``.
        seconds: see ``suggest``.
        seed: of all random directions.

    Examples:
        >>> import deqlm, torch
        >>> from deqlm.diagnostics import Probes
        >>> deqlm.diagnose(torch.cos, torch.zeros(1, 1), probes=Probes(starts=1)).path is None
        True
    """

    krylov: int = 40
    dense: int = 100
    rows: int = 8
    plain: int = 200
    starts: int = 3
    suggest: bool | str = "auto"
    seconds: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("krylov", 1), ("dense", 0), ("rows", 1), ("plain", 8), ("starts", 1)):
            whole(name, getattr(self, name), least)
        whole("seed", self.seed, 0, sys.maxsize)
        known = isinstance(self.suggest, bool) or self.suggest == "auto"
        require(known, "suggest", self.suggest, "True, False or 'auto'")
        number("seconds", self.seconds, "> 0", lambda s: s > 0)


class Examined(NamedTuple):
    """The findings, and how to find out more.

    Attributes:
        found: the findings.
        begun: the start of every row, that other solves are held against.
        backward: what the backward solve of another gradient at the same point comes to; None where the gradient solves
            nothing, or there is nothing to solve.
    """

    found: Findings
    begun: Start
    backward: Callable[[Gradient], Backward | None]


def examine(subject: Subject, probes: Probes) -> Examined:
    """Look at everything; numerics of a sick map end up in the findings, not in an error.

    Raises:
        Exception: what f raises at the very start.
    """
    z0 = subject.rows.z0.detach().clone()
    in_place = probe_in_place(subject.raw, z0)
    first = subject.held(z0)
    near = first if bool(first.isfinite().all()) and _attempt(lambda: subject.raw(first.clone())) is not None else z0
    points = [z0] if near is z0 else [z0, near]
    randomness = _attempt(lambda: probe_randomness(subject.raw, subject.held, points))
    stop = judged(subject.how.stop)
    begun = Start.of(z0, first)
    outcome, raised = solve_as_asked(subject, stop, begun, "clone" if in_place.writes_argument else None)
    plain, plain_point = solve_plainly(subject, z0, stop, begun, probes.plain)
    known: dict[str, Any] = {"plain": plain, "randomness": randomness, "solved": outcome.passed | plain_point.solved}

    def backward(gradient: Gradient) -> Backward | None:
        return None

    if (randomness is None or randomness.held) and z0.numel():
        draw = torch.Generator(device="cpu").manual_seed(probes.seed)
        known["mixing"] = mixing = _attempt(lambda: probe_mixing(subject.held, near, draw))
        tokens = _tokens(subject)
        if tokens is not None:
            known["tokens"] = len(tokens)
            known["causality"] = _attempt(lambda: probe_causality(subject.held, near, tokens, draw))
        known["skip"] = _attempt(lambda: probe_skip(subject.held, [z0, near], draw))
        point = rescue(subject, z0, stop, begun, [Point(outcome.z, outcome.passed), plain_point])
        known["solved"] = point.solved
        joint = mixing is not None and mixing.mixes
        J = _attempt(lambda: _jacobian(subject, point, outcome, plain, probes, joint))
        if J is not None:
            seen = tokens if known.get("causality") == "causal" and not joint else None
            known["contraction"] = _attempt(lambda: _contraction(subject, J, point, probes, seen))
            backward = partial(_backward, J, point.solved, subject.layout, probes.seed, subject.how.solver)
            known["adjoint"] = _attempt(lambda: backward(subject.gradient))
        if bool(point.z.isfinite().all()):
            known["floor"] = _attempt(lambda: float(noise_floor(subject.held, point.z, draw).nan_to_num().max()))
        known["parts"] = _attempt(lambda: _parts(subject, outcome, stop))
        if bool(outcome.passed.any()) and probes.starts > 1:
            kappa = known.get("contraction")
            known["path"] = _attempt(lambda: compare_starts(subject, outcome, stop, begun, probes.starts, kappa, draw))
    start_finite = tuple(first.isfinite().all(1).tolist())
    found = _findings(subject, stop, outcome, raised, in_place=in_place, start_finite=start_finite, **known)
    return Examined(found, begun, backward)


def _attempt(look: Callable[[], T]) -> T | None:
    """Return what a probe sees, or None where f raises at the points that it looks at."""
    try:
        return look()
    except Exception:  # f may raise anything away from its start; the solve itself tells what
        return None


def _tokens(subject: Subject) -> Tensor | None:
    """Return the unknowns of each token, (L, D), where the state has tokens."""
    shapes = subject.rows.row_shapes
    axis = subject.how.stop.token_dim - subject.rows.batch_dims
    if len(shapes) != 1 or len(shapes[0]) < 2 or not 0 <= axis < len(shapes[0]) or shapes[0][axis] < 2:
        return None
    index = torch.arange(math.prod(shapes[0]), device=subject.rows.device).reshape(shapes[0])
    index = index.movedim(axis, 0)
    return index.reshape(len(index), -1)


def _jacobian(
    subject: Subject, point: Point, outcome: Outcome, plain: Plain | None, probes: Probes, joint: bool
) -> Jacobian | None:
    """Return the Jacobian for the rows that tell most: failed ones, then slow ones."""
    if not point.z.numel() or not bool(point.z.isfinite().all()):
        return None
    fz = subject.held(point.z)
    usable = fz.isfinite().all(1).tolist()

    def ease(row: int) -> tuple[bool, float]:
        if not bool(outcome.passed[row]):
            return False, -float(outcome.relative[row])
        return True, 0.0 if plain is None else -float(plain.steps[row])

    order = sorted((row for row, ok in enumerate(usable) if ok), key=ease)
    if not order or (joint and not all(usable)):
        return None
    return Jacobian(subject.held, point.z, order[: probes.rows], joint)


def _contraction(
    subject: Subject, J: Jacobian, point: Point, probes: Probes, tokens: Tensor | None
) -> Contraction | None:
    residual = row_norms(J.select(subject.held(J.z) - J.z))
    solved = bool(point.solved.all() if J.joint else point.solved[J.rows].all())
    return measure_contraction(
        subject.held,
        J,
        residual,
        at="solution" if solved else "best point",
        krylov=probes.krylov,
        most_dense=probes.dense,
        seed=probes.seed,
        tokens=tokens,
    )


def _parts(subject: Subject, outcome: Outcome, stop: Stop) -> Parts | None:
    """Return what is too small to be seen by the solve or by the backward solve."""
    gradient, sight = subject.gradient, 0.0
    if isinstance(gradient, Implicit):
        backward = gradient.backward(subject.how.solver).stop.resolve(outcome.z.dtype, rtol=1e-6)
        sight = backward.rtol if backward.per == "row" else 0.0
    return find_parts(outcome.z, subject.held(outcome.z), outcome.passed, stop, subject.layout, sight)


def _backward(
    J: Jacobian, solved: Tensor, layout: Layout, seed: int, solver: Solver, gradient: Gradient
) -> Backward | None:
    """Solve the adjoint system for a random cotangent, as `Implicit` would, on the rows that converged forward."""
    if not isinstance(gradient, Implicit) or not J.transposable or not bool(solved.any()):
        return None
    draw = torch.Generator(device="cpu").manual_seed(seed)
    g = torch.randn(J.z.shape, generator=draw, dtype=torch.float64, device="cpu").to(J.z.device, J.z.dtype)
    g = g / row_norms(g).clamp_min(1e-300)[:, None].to(g.dtype)
    how = gradient.backward(solver)
    how = how.replace(stop=how.stop.resolve(g.dtype, rtol=1e-6))
    system = LinearSystem(J.pulled, g, Layout(leaves=layout.leaves, batch_dims=layout.batch_dims))
    sol = solve_cotangent(how, system, rescue=gradient.solve == "auto")
    keep = solved.nonzero().flatten()
    return Backward(
        status=tuple(Status(int(s)).name for s in sol.status[keep]),
        steps=tuple(sol.steps[keep].tolist()),
        residual=tuple(sol.residual[keep].tolist()),
    )


def _findings(
    subject: Subject, stop: Stop, outcome: Outcome, raised: str | None, solved: Tensor, **known: Any
) -> Findings:
    curves = None
    if outcome.trace is not None:
        columns = zip(outcome.trace.T.tolist(), outcome.steps.tolist(), strict=True)
        curves = tuple(tuple(curve[: max(1, int(n))]) for curve, n in columns)
    return Findings(
        solver=subject.title,
        plain_solver=subject.is_plain,
        dtype=str(subject.rows.dtype).removeprefix("torch."),
        unknowns=subject.rows.z0.shape[1],
        max_iter=subject.how.stop.max_iter,
        rtol=stop.rtol,
        atol=stop.atol,
        budget=subject.how.stop.is_budget,
        status=tuple(Status(int(s)).name for s in outcome.status),
        passed=tuple(outcome.passed.tolist()),
        steps=tuple(int(n) for n in outcome.steps),
        residual=tuple(outcome.residual.tolist()),
        relative=tuple(outcome.relative.tolist()),
        runaway=tuple(outcome.runaway.tolist()),
        solved=tuple(solved.tolist()),
        trace=curves,
        raised=raised,
        **known,
    )
