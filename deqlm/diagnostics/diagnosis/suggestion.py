"""What to try: words, options that can be applied, and what came of trying them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from deqlm.deq import DEQ
from deqlm.diagnostics.diagnosis.cause import Cause
from deqlm.diagnostics.diagnosis.findings import Findings
from deqlm.diagnostics.diagnosis.parts import Parts
from deqlm.diagnostics.diagnosis.wraps import NORMS, Norm, Wrap, wrapped
from deqlm.functional import solve
from deqlm.gradients import Implicit
from deqlm.models import ImplicitLM
from deqlm_solvers import SOLVERS, Anderson, Broyden, FixedPoint, Options, Solve, Solver, Stop

__all__ = ["Suggestion", "candidates", "changed", "last_resort"]


@dataclass(frozen=True)
class Suggestion:
    """What to try.

    Attributes:
        text: in words.
        options: keywords for `DEQ` or `deqlm.solve`; empty where no option helps.
        wrap: what f has to be wrapped in: "clone" (it gets a copy of its argument), "layer_norm", "rms_norm" or
            "group_norm" (its output is normalised), or None.
        tried: what came of it, in words; "" where it was not tried.
        worked: the diagnosis tried it, and every row converged; None where it was not tried.

    Examples:
        >>> import deqlm, torch
        >>> f = lambda z: 1 - z
        >>> diagnosis = deqlm.diagnose(f, torch.zeros(2, 3), solver="fixed_point")
        >>> diagnosis.cause.name, diagnosis.suggestion.worked
        ('TWO_CYCLE', True)
        >>> bool(diagnosis.suggestion.apply(f)(torch.zeros(2, 3)).converged.all())
        True
    """

    text: str
    options: Mapping[str, Any] = field(default_factory=dict)
    wrap: Wrap | None = None
    tried: str = ""
    worked: bool | None = None

    def apply(self, target: Any) -> Any:
        """Return the target with the suggestion in force.

        Args:
            target: a `DEQ`, of which a copy is returned that shares its layer and parameters; an
                `deqlm.models.ImplicitLM`, likewise, with another ``no_grad``; or a map f, for which ``deqlm.solve`` is
                returned with f and the options filled in, to be called with z0.
        """
        if isinstance(target, ImplicitLM):
            made, now = copy.copy(target), target.no_grad
            made.no_grad = Solve(self.options.get("solver", now.solver), self.options.get("stop", now.stop))
            if getattr(target.gradient, "same_value", False):
                made.solve = made.no_grad
            return made
        if isinstance(target, DEQ):
            return _changed_deq(target, self.options, self.wrap)
        return partial(solve, wrapped(target, self.wrap), **self.options)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        plain = {k: v.to_dict() if isinstance(v, Options) else v for k, v in self.options.items()}
        return {"text": self.text, "options": plain, "wrap": self.wrap, "tried": self.tried, "worked": self.worked}

    def __str__(self) -> str:
        return self.text


def _changed_deq(deq: DEQ, options: Mapping[str, Any], wrap: Wrap | None) -> DEQ:
    made = copy.copy(deq)
    for registry in ("_modules", "_buffers", "_parameters"):
        made.__dict__[registry] = dict(getattr(deq, registry))
    made.solve = Solve(options.get("solver", deq.solve.solver), options.get("stop", deq.solve.stop))
    made.gradient = options.get("gradient", deq.gradient)
    made.gradient.check(made.solve)
    made.batch_dims = options.get("batch_dims", deq.batch_dims)
    made.layer = wrapped(deq.layer, wrap)
    return made


def changed(options: Mapping[str, Any]) -> str:
    """Return keywords as a user would write them, defaults left out."""
    return ", ".join(f"{name}={_written(value)}" for name, value in options.items())


def _written(value: Any) -> str:
    if not isinstance(value, Options):
        return repr(value)
    given = []
    for f in fields(value):  # type: ignore[arg-type]
        now = getattr(value, f.name)
        if now != f.default:
            given.append(f"{f.name}={now:g}" if isinstance(now, float) else f"{f.name}={_written(now)}")
    return f"{type(value).__name__}({', '.join(given)})"


def candidates(cause: Cause, found: Findings, how: Solve, normed: Callable[[Norm], str | None]) -> Iterator[Suggestion]:
    """Return what to try, best first; the last entries are the strongest methods there are.

    Args:
        cause: the diagnosis.
        found: its evidence.
        how: solver and stop that the user chose; its settings are kept where they are not the cause, and what would run
            as before is left out.
        normed: how a norm after the sum is written for what is diagnosed, None where that norm does not apply.
    """
    stop = _testing(how.stop, found)
    if cause in _WORDS_ONLY:
        pieces = cause is Cause.PATH_DEPENDENT and found.causality == "causal"
        yield Suggestion(_WORDS_ONLY[cause] + (_PIECES if pieces else ""))
        return
    if cause is Cause.NONFINITE and not all(found.start_finite):
        rows = ", ".join(str(row) for row, finite in enumerate(found.start_finite) if not finite)
        yield Suggestion(f"f is not finite at the very start of rows {rows}: look for NaN or overflow in their inputs")
        return
    if cause is Cause.RUNAWAY:
        yield from _norms(how, stop, normed)
        return
    for words, options, wrap in _specific(cause, found, stop):
        if wrap is not None or not options or _changes(options, how):
            yield Suggestion(_sentence(words, options), options, wrap)
    if cause not in _SOLVE:
        return
    for options in _methods(cause, found, how, stop):
        yield Suggestion(_sentence("", options), options)


_WORDS_ONLY = {
    Cause.RAISED: "read the error; make f return a value, NaN at worst, at every finite point",
    Cause.PATH_DEPENDENT: "fix the start, or make f contract: scale the layer down, bound its norm, weaken its gain",
}

_PIECES = (
    ". Token by token, in chunks or with a cache a solve starts elsewhere and may end at another solution: cached and "
    "uncached text of a model may differ"
)

_LAST_RESORT = {
    Cause.SINGULAR: "make sure that f has a fixed point and that it is the only one nearby; z + 1 has none",
    Cause.NONFINITE: "look for overflow, division by zero, log or sqrt of negative numbers in f",
    Cause.MIXED_ROWS: "call eval() for BatchNorm, set batch_first=True, or use a layer that keeps rows apart",
    Cause.RUNAWAY: (
        "end the layer with a norm after the sum, as post-norm blocks do, and scale down what it adds: norm(z + F(z))"
    ),
    Cause.ADJOINT: "take a gradient that solves nothing, such as gradient='phantom', or make f contract more",
}

_SOLVE = {
    Cause.NONFINITE,
    Cause.SOLVER_MISFIT,
    Cause.TOO_FEW_EVALUATIONS,
    Cause.CAUSAL_FRONTIER,
    Cause.SLOW_CONTRACTION,
    Cause.COMPLEX_PAIR,
    Cause.TWO_CYCLE,
    Cause.NON_NORMAL,
    Cause.DIVERGENCE,
    Cause.SINGULAR,
    Cause.VANISHING,
    Cause.DTYPE_FLOOR,
    Cause.UNCLEAR,
}
"""Causes for which another method or more evaluations may help."""

Candidate = tuple[str, dict[str, Any], Wrap | None]


def _specific(cause: Cause, found: Findings, stop: Stop) -> Iterator[Candidate]:
    """Yield what fits one cause and no other."""
    longer = stop.replace(max_iter=_longer(stop))
    if cause is Cause.IN_PLACE:
        yield "return a new tensor instead of writing into z: z.clone() first, or z + 1 for z.add_(1)", {}, "clone"
    elif cause is Cause.MIXED_ROWS:
        words = "solve the batch as one problem, call eval() for BatchNorm, or set batch_first=True"
        yield words, {"batch_dims": 0}, None
    elif cause is Cause.STOCHASTIC:
        yield "draw the noise once and give it to f as an argument, or call eval()", {}, None
    elif cause is Cause.DTYPE_FLOOR:
        reached = max([found.relative[row] for row, ok in enumerate(found.passed) if not ok], default=0.0)
        rtol = float(f"{max(8 * (found.floor or 0.0), 2 * reached):.0e}")
        yield "ask for no more than the dtype has, or solve in float64", {"stop": stop.replace(rtol=rtol)}, None
    elif cause is Cause.VANISHING:
        first = max((curve[0] for curve in found.plain.trace if curve), default=1.0) if found.plain else 1.0
        atol = float(f"{stop.rtol * first:.0e}") or stop.rtol
        yield "give an absolute tolerance", {"stop": stop.replace(atol=atol)}, None
    elif cause is Cause.TOO_FEW_EVALUATIONS:
        plain = found.plain
        needed = max((n for n, ok in zip(plain.steps, plain.converged, strict=True) if ok), default=0) if plain else 0
        yield "allow more evaluations", {"stop": stop.replace(max_iter=max(2 * stop.max_iter, needed + 10))}, None
    elif cause is Cause.SOLVER_MISFIT:
        yield "take plain steps", {"solver": FixedPoint()}, None
    elif cause is Cause.CAUSAL_FRONTIER:
        most = max(2 * (found.tokens or 0) + 100, stop.max_iter)
        options = {"solver": FixedPoint(), "stop": stop.replace(max_iter=most)}
        yield "take plain steps and allow for the length of the sequence", options, None
    elif cause is Cause.UNLIKE_PARTS and found.parts is not None:
        by_parts = found.parts.rule
        backward = Implicit(solve=Solve(Anderson(), Stop(max_iter=200, rtol=1e-6, **by_parts)))
        for until in (stop, longer):
            options = {"stop": until.replace(**by_parts), "gradient": backward}
            yield _unlike(found.parts), options, None
    elif cause is Cause.ADJOINT:
        for solver, rtol in ((Anderson(memory=25), 1e-6), (Broyden(memory=40), 1e-6), (Anderson(memory=25), 1e-5)):
            harder = Implicit(solve=Solve(solver, Stop(max_iter=1000, rtol=rtol)))
            yield "solve the backward system harder, to what rounding allows", {"gradient": harder}, None
    elif cause is Cause.NONFINITE:
        yield "keep the iterates where f is defined: smaller steps", {"solver": FixedPoint(damping=0.5)}, None
        yield "", {"solver": FixedPoint(damping=0.1), "stop": longer}, None


def _unlike(parts: Parts) -> str:
    words = "ask for the tolerance in every part, forward and backward"
    return words if parts.dim is None else f"{words}, or make every part a row, batch_dims={parts.dim + 1}"


def last_resort(cause: Cause) -> str:
    """Return what to do when nothing that was tried works."""
    return _LAST_RESORT.get(cause, "change the layer so that it contracts: scale it down, bound its norm, add damping")


def _methods(cause: Cause, found: Findings, how: Solve, stop: Stop) -> Iterator[dict[str, Any]]:
    """Yield solvers from cheap to strong, the one in use left out where it would run as before."""
    longer = stop.replace(max_iter=_longer(stop))
    plans: list[tuple[Any, Stop]] = [(Anderson(), stop), (Broyden(), stop)]
    damped = found.contraction is not None and min(found.contraction.damped_radius) < 0.9
    if cause is Cause.TWO_CYCLE or (cause is Cause.COMPLEX_PAIR and damped):
        plans.insert(0 if cause is Cause.TWO_CYCLE else 1, (FixedPoint(damping=0.5), stop))
    plans += [(Anderson(), longer), (Anderson(memory=25), longer), (Broyden(memory=40), longer)]
    plans += [(SOLVERS.make(name), longer) for name in ("newton_krylov",) if name in SOLVERS]
    plans.append((FixedPoint(damping=0.5), longer))
    for solver, until in plans:
        if options := _differing(solver, until, how):
            yield options


def _differing(solver: Solver, stop: Stop, how: Solve) -> dict[str, Any]:
    """Return what differs from the solve in use, as options."""
    return {
        **({} if solver == how.solver else {"solver": solver}),
        **({} if stop == how.stop else {"stop": stop}),
    }


def _changes(options: Mapping[str, Any], how: Solve) -> bool:
    """Say whether options are other ones than those of the solve in use."""
    given = Solve(options.get("solver", how.solver), options.get("stop", how.stop))
    return bool(options.keys() - {"solver", "stop"}) or given != how


def _norms(how: Solve, stop: Stop, normed: Callable[[Norm], str | None]) -> Iterator[Suggestion]:
    """Yield norms after the sum, with the solve in use, then with more evaluations, then with another method."""
    longer = stop.replace(max_iter=_longer(stop))
    for solver, until in ((how.solver, stop), (how.solver, longer), (Anderson(), longer), (Broyden(), longer)):
        options = _differing(solver, until, how)
        for norm in NORMS:
            line = normed(norm)
            if line is not None:
                yield Suggestion(_sentence(f"{_NORM_WORDS}: {line}", options), options, norm)


_NORM_WORDS = "normalise after the sum, so that the state cannot grow"


def _testing(stop: Stop, found: Findings) -> Stop:
    """Return the user's stop; one that tests for a budget, and with a tolerance that rounding allows."""
    if stop.is_budget:
        stop = Stop(max_iter=max(stop.max_iter, 50), rtol=found.rtol, norm=stop.norm)
    floor = found.floor or 0.0
    too_tight = floor < 0.1 and stop.atol == 0 and stop.rtol < 4 * floor
    return stop.replace(rtol=float(f"{8 * floor:.0e}")) if too_tight else stop


def _longer(stop: Stop) -> int:
    return max(10 * stop.max_iter, 1000)


def _sentence(words: str, options: Mapping[str, Any]) -> str:
    return ": ".join(part for part in (words, changed(options)) if part)
