"""What to try where a method that differentiates f failed."""

from __future__ import annotations

from deqlm_solvers.core.status import Status

__all__ = ["newton_advice"]

_NONE = "a layer z + F(z), such as a pre-norm block, may have no solution in reach: put a norm after the sum"
"""Told of rows whose state has not grown yet, too: such methods may end before it has."""
_TEXTS = {
    Status.MAX_ITER: (
        "raise max_iter, of which every product with the Jacobian takes one, start nearer to the solution, or use "
        f"'fallback', which tries other methods; {_NONE}"
    ),
    Status.STALLED: (
        "no step lowers the residual: it may have a minimum here that is no solution, or the solution is zero; start "
        f"elsewhere, set atol, or use 'fallback'; {_NONE}"
    ),
    Status.DIVERGED: (
        "the residual explodes along every direction, however short the step: f jumps here, or its derivative is "
        "wrong (work in place, or detached, inside f); start elsewhere, or use 'fallback'"
    ),
    Status.NONFINITE: (
        "f is not finite at the start, or on every side of the last point: look for NaN in the inputs, start where f "
        "is finite, or keep f off the edge of its domain"
    ),
}


def newton_advice(status: Status) -> str:
    """Return one sentence for rows that ended with ``status``; empty where that is no failure.

    Such methods have no need of damping: steps that lead too far are shortened.
    """
    return _TEXTS.get(status, "")
