"""The settings of one call: what is stored, with what the call gives in place of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from deqlm.gradients.base import GRADIENTS, Gradient
from deqlm_solvers import SOLVERS, Solve, Solver, Stop
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.kept import Kept

__all__ = ["GivenGradient", "GivenSolver", "GivenStop", "check_evaluation", "in_use", "kept_solve", "make_solve"]

GivenSolver = str | Mapping[str, Any] | Solver
GivenStop = Stop | Mapping[str, Any]
GivenGradient = str | Mapping[str, Any] | Gradient


def make_solve(solver: GivenSolver, stop: GivenStop | None, default: Stop) -> Solve:
    """Return a solve of what a constructor was given; ``default`` stands for a stop of None."""
    return Solve(solver, default if stop is None else stop)


def kept_solve(solver: GivenSolver, stop: GivenStop) -> Solve:
    """Return a solve, made and checked once for the same two objects.

    Raises:
        TypeError, ValueError, KeyError: see `Solve`.
    """
    if isinstance(solver, str):
        solver = SOLVERS.make(solver)
    kept = _SOLVES.get((id(solver), id(stop)))
    if kept is None:
        kept = Solve(solver, stop)
        if isinstance(stop, Stop) and isinstance(solver, Solver):
            _SOLVES.keep((solver, stop), kept)
    return kept


_SOLVES: Kept[Solve] = Kept()


def check_evaluation(
    evaluation: Solve | Mapping[str, Any] | None, gradient: Gradient, solve: Solve | None = None
) -> Solve | None:
    """Return the solve without grad, or None where it is that with grad.

    Args:
        evaluation: what was given.
        gradient: the method beside it.
        solve: that with grad, to which the other may be equal.

    Raises:
        TypeError, ValueError: it is neither a `Solve` nor a dict of one, or the gradient method asks for the same value
            with grad and without, which another solve cannot give.
    """
    if evaluation is None:
        return None
    how = Solve.from_dict(evaluation) if isinstance(evaluation, Mapping) else evaluation
    require(isinstance(how, Solve), "evaluation", evaluation, "a Solve(solver, stop), a dict of its fields, or None")
    same = getattr(gradient, "same_value", False) and how != solve
    require(not same, "gradient", gradient, "one without same_value, because evaluation is another solve")
    return how


def in_use(
    stored: tuple[Solve, Gradient, Solve | None],
    solver: GivenSolver | None,
    stop: GivenStop | None,
    gradient: GivenGradient | None,
) -> tuple[Solve, Gradient]:
    """Return solver, stop and gradient method of one call in the grad mode of now.

    Args:
        stored: how to solve with grad, the gradient method, and how to solve without grad (None: the same).
        solver: in place of that of the solve in use; None keeps it.
        stop: likewise.
        gradient: in place of the stored one; None keeps it.

    Raises:
        TypeError, ValueError, KeyError: an option that is unknown, out of range or would be ignored, or a pair that
            does not fit.
    """
    grad, method, evaluation = stored
    how = grad if evaluation is None or torch.is_grad_enabled() else evaluation
    if solver is None and stop is None and gradient is None:
        check_evaluation(evaluation, method, grad)
        return how, method
    if solver is not None or stop is not None:
        how = kept_solve(how.solver if solver is None else solver, how.stop if stop is None else stop)
    if gradient is not None:
        method = GRADIENTS.make(gradient)
    check_evaluation(evaluation, method, grad)
    if torch.is_grad_enabled() or evaluation is None:
        method.check(how)
    return how, method
