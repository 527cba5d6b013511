"""What to try where a solve failed: by a method that differentiates f, of a root, of a cotangent."""

from __future__ import annotations

from deqlm_solvers.core.status import Status

__all__ = ["adjoint_advice", "newton_advice", "root_advice"]

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


_OF_ROOT = {
    Status.MAX_ITER: (
        "raise max_iter (products with the Jacobian count), loosen rtol and atol, start nearer to the root, or leave "
        "solver away, which tries several methods"
    ),
    Status.STALLED: (
        "no step lowers ||F||: it may have a minimum here that is no root; start elsewhere, or set atol, in units of F"
    ),
    Status.DIVERGED: (
        "||F|| grows, or z does while ||F|| does not fall: start nearer to a root, leave solver away, which tries "
        "several methods, or give F in units in which its values are about as large as those of z"
    ),
    Status.NONFINITE: (
        "F is not finite at the start, or around the last point: look for NaN in the inputs, start where F is finite, "
        "or keep it off the edge of its domain"
    ),
}
_OF_COTANGENT = {
    Status.MAX_ITER: "give it more, or a looser rtol: gradient=Implicit(solve=Solve(solver, Stop(...)))",
    Status.STALLED: (
        "I - J is singular or nearly so at the point: the solution is not isolated there, or the forward solve has not "
        "reached it"
    ),
    Status.DIVERGED: "the Jacobian expands: use NewtonKrylov() in gradient=Implicit(solve=Solve(solver, stop))",
    Status.NONFINITE: (
        "the incoming gradient or the Jacobian of f is not finite: look for overflow, and for sqrt, log or a division "
        "at the edge of its domain in f"
    ),
}


def root_advice(status: Status) -> str:
    """Return one sentence for rows whose root search ended with ``status``; empty where that is no failure."""
    return _OF_ROOT.get(status, "")


def adjoint_advice(status: Status) -> str:
    """Return the same for the solve of a cotangent, which no start, damping or atol helps."""
    return _OF_COTANGENT.get(status, "")
