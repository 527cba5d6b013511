"""Say why a solve does not converge and what to try, and try it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from deqlm.deq import DEQ
from deqlm.diagnostics.diagnosis.attempts import solves
from deqlm.diagnostics.diagnosis.cause import Cause, character, classify
from deqlm.diagnostics.diagnosis.examine import Examined, Probes, examine
from deqlm.diagnostics.diagnosis.findings import Findings
from deqlm.diagnostics.diagnosis.report import Diagnosis
from deqlm.diagnostics.diagnosis.subject import DEQSubject, MapSubject, Subject, model_subject
from deqlm.diagnostics.diagnosis.suggestion import Suggestion, candidates, changed, last_resort
from deqlm.diagnostics.unchanged import Snapshot, unchanged
from deqlm.models import ImplicitLM
from deqlm_solvers.core.checks import require, suggest
from deqlm_solvers.core.peer_names import HINTS

__all__ = ["diagnose"]

KEYWORDS = ("args", "solver", "stop", "gradient", "batch_dims", "scale", "token_mask")


def diagnose(
    target: DEQ | ImplicitLM | Callable[..., Any],
    x: Any,
    *args: Any,
    probes: Probes | None = None,
    token_mask: Tensor | None = None,
    **kwargs: Any,
) -> Diagnosis:
    """Solve once and say what happened: converged or not, how the map contracts, the likely cause, and what to try.

    For a solve that does not converge, that is slow, or that you do not trust. The numerics of a sick map (NaN,
    divergence, work in place, random numbers, an error raised on the way) end up in the report and raise nothing. The
    module is left as it was: generators, buffers, gradients and training mode; counters and other Python state that an
    evaluation changes are not put back. What is suggested is tried, and the report says what came of it.

    It costs a few hundred evaluations of f and as many products with its Jacobian; memory for about
    ``probes.krylov`` states of the examined rows.

    Args:
        target: a `DEQ`, a language model (`deqlm.models.ImplicitLM`, or one of `deqlm.hf`) or a map f.
        x: for a `DEQ` its input; for a model tokens (B, L), which are solved all at once as the model evaluates and
            generates; for a map the start z0.
        *args: for a `DEQ`, further arguments of the layer; a map takes them as ``args=(...)``, like `deqlm.solve`.
        probes: how much to look at; None is ``Probes()``.
        token_mask: as for `DEQ` and `deqlm.solve`; for a model True at real tokens.
        **kwargs: for a `DEQ`, keywords of the layer; for a map, those of `deqlm.solve`: ``solver``, ``stop``,
            ``gradient``, ``args``, ``batch_dims``, ``scale``.

    Returns:
        `Diagnosis`: ``print`` it, or read its fields.

    Raises:
        TypeError, ValueError: bad input, as from the call that is diagnosed; an error of f at the very start.

    Examples:
        >>> import deqlm, torch
        >>> turn = 0.99 * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> found = deqlm.diagnose(lambda z: z @ turn.T + 1, torch.zeros(1, 2), solver="fixed_point")
        >>> found.cause.name, round(found.contraction.radius[0], 3), found.suggestion.worked
        ('COMPLEX_PAIR', 0.99, True)
    """
    probes = Probes() if probes is None else probes
    require(isinstance(probes, Probes), "probes", probes, "a Probes, such as Probes(krylov=60)")
    if isinstance(target, DEQ):
        return _run(lambda kept: DEQSubject(target, x, args, kwargs, token_mask, kept), target, probes)
    model = target if isinstance(target, ImplicitLM) else getattr(target, "lm", None)
    if isinstance(model, ImplicitLM):
        for given in (*args, *kwargs):
            raise TypeError(f"a model takes token_mask=... and probes=... only, got {given!r}")
        return _run(lambda kept: model_subject(model, x, token_mask, kept), model, probes)
    if not callable(target):
        raise TypeError(f"target must be a DEQ or a map, got {type(target).__name__}")
    if args:
        raise TypeError(f"a map takes further arguments as args=(...), got {len(args)} more by position")
    for key in kwargs:
        if key not in KEYWORDS:
            raise TypeError(f"unknown option {key!r}: {HINTS.get(key) or suggest(key, (*KEYWORDS, 'probes'))}")
    settings = {**kwargs, **({} if token_mask is None else {"token_mask": token_mask})}
    return _run(lambda kept: MapSubject(target, x, settings, kept), target, probes)


def _run(make: Callable[[Snapshot], Subject], shown: Callable[..., Any], probes: Probes) -> Diagnosis:
    started = time.perf_counter()
    with (
        unchanged(shown) as snapshot,
        torch.inference_mode(False),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)
        subject = make(snapshot)
        examined = examine(subject, probes)
        found = examined.found
        cause = classify(found)
        suggestion = _advise(cause, examined, subject, probes)
    return Diagnosis(
        **{f.name: getattr(found, f.name) for f in fields(Findings)},
        cause=cause,
        character=character(found),
        suggestion=suggestion,
        seconds=time.perf_counter() - started,
    )


def _advise(cause: Cause, examined: Examined, subject: Subject, probes: Probes) -> Suggestion | None:
    """Return the first suggestion that works; failing that, what to change in f."""
    best: Suggestion | None = None
    failed: list[Suggestion] = []
    deadline = time.monotonic() + probes.seconds
    for each in candidates(cause, examined.found, subject.how, subject.normed):
        if not each.options and each.wrap is None:
            best = best or each
        elif not probes.suggest:
            return each
        elif probes.suggest == "auto" and time.monotonic() > deadline:
            return replace(each, tried="not tried, because it takes long; Probes(suggest=True) does")
        else:
            done = _try(each, subject, examined)
            if done is not None and done.worked:
                return done
            failed += [] if done is None else [done]
    if not failed or best is not None:
        return best
    more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    text = f"tried {changed(failed[0].options) or failed[0].wrap}{more}: none made every row converge"
    return Suggestion(last_resort(cause), tried=text, worked=False)


def _try(suggestion: Suggestion, subject: Subject, examined: Examined) -> Suggestion | None:
    """Solve with the suggestion, forward or backward or both; None where it does not apply here."""
    worked, spent = True, []
    try:
        if suggestion.wrap is not None or suggestion.options.keys() - {"gradient"}:
            sol = subject.solve(suggestion)
            worked = solves(subject, sol, examined.begun)
            spent.append(f"{int(sol.steps.max())} evaluations")
        if "gradient" in suggestion.options:
            backward = examined.backward(suggestion.options["gradient"])
            if backward is None:
                return None
            worked = worked and backward.converged
            spent.append(f"{max(backward.steps, default=0)} products with J^T")
    except Exception:  # refused by a gradient, a solver, or f itself
        return None
    text = f"tried: {'converged in' if worked else 'not converged after'} {' and '.join(spent)}"
    return replace(suggestion, tried=text, worked=worked)
