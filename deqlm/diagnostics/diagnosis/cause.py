"""The codes of a diagnosis, and how the findings lead to one."""

from __future__ import annotations

from enum import StrEnum

from deqlm.diagnostics.diagnosis.findings import Findings

__all__ = ["Cause", "character", "classify"]


class Cause(StrEnum):
    """Why a solve fails, or what is wrong with a map; the page "It does not converge" has a section on each.

    Examples:
        >>> from deqlm.diagnostics import Cause
        >>> Cause("TWO_CYCLE").text
        'plain iteration jumps between two points: the leading eigenvalue of the Jacobian is negative'
    """

    HEALTHY = "HEALTHY"
    IN_PLACE = "IN_PLACE"
    RAISED = "RAISED"
    NONFINITE = "NONFINITE"
    STOCHASTIC = "STOCHASTIC"
    MIXED_ROWS = "MIXED_ROWS"
    DTYPE_FLOOR = "DTYPE_FLOOR"
    VANISHING = "VANISHING"
    TOO_FEW_EVALUATIONS = "TOO_FEW_EVALUATIONS"
    SOLVER_MISFIT = "SOLVER_MISFIT"
    CAUSAL_FRONTIER = "CAUSAL_FRONTIER"
    SLOW_CONTRACTION = "SLOW_CONTRACTION"
    COMPLEX_PAIR = "COMPLEX_PAIR"
    TWO_CYCLE = "TWO_CYCLE"
    NON_NORMAL = "NON_NORMAL"
    DIVERGENCE = "DIVERGENCE"
    RUNAWAY = "RUNAWAY"
    SINGULAR = "SINGULAR"
    PATH_DEPENDENT = "PATH_DEPENDENT"
    UNLIKE_PARTS = "UNLIKE_PARTS"
    ADJOINT = "ADJOINT"
    UNCLEAR = "UNCLEAR"

    @property
    def text(self) -> str:
        """The cause in one plain sentence."""
        return _TEXTS[self]


_TEXTS = {
    Cause.HEALTHY: "nothing wrong was found",
    Cause.IN_PLACE: "f writes into the tensor that it is given, so the iterate changes under the solver",
    Cause.RAISED: "f raised an error at a point that the solver tried",
    Cause.NONFINITE: "f returned NaN or infinity",
    Cause.STOCHASTIC: "f returns different values at the same point, so there is no fixed point to find",
    Cause.MIXED_ROWS: "f of one row depends on other rows, so they are no separate problems",
    Cause.DTYPE_FLOOR: "the tolerance is below what rounding in this dtype allows",
    Cause.VANISHING: "the solution is zero: the residual and f(z) vanish together, which rtol alone cannot pass",
    Cause.TOO_FEW_EVALUATIONS: "the map contracts well, max_iter is too small for the tolerance",
    Cause.SOLVER_MISFIT: "plain iteration converges here, the chosen solver does not",
    Cause.CAUSAL_FRONTIER: "each token settles only after the ones before it, so the end moves through the sequence",
    Cause.SLOW_CONTRACTION: "the map contracts slowly: a real eigenvalue of the Jacobian is just below 1",
    Cause.COMPLEX_PAIR: "plain iteration spirals: the leading eigenvalues of the Jacobian are a complex pair",
    Cause.TWO_CYCLE: "plain iteration jumps between two points: the leading eigenvalue of the Jacobian is negative",
    Cause.NON_NORMAL: "the Jacobian is far from normal: errors grow for a while before they fall",
    Cause.DIVERGENCE: "the map expands: plain iteration runs away from the solution, damped or not",
    Cause.RUNAWAY: (
        "the layer is z + F(z): the state grows and the residual does not fall; it has no fixed point in reach"
    ),
    Cause.SINGULAR: "I - J is singular or nearly so: a fixed point may not exist, or not be the only one around",
    Cause.PATH_DEPENDENT: "different starts lead to different solutions",
    Cause.UNLIKE_PARTS: (
        "parts of a row are smaller than the tolerance of the whole row, which cannot see whether they are solved"
    ),
    Cause.ADJOINT: "the forward solve converges, the backward solve does not: gradients are wrong",
    Cause.UNCLEAR: "it does not converge, and no known pattern fits",
}


def classify(found: Findings) -> Cause:
    """Return the likely cause: what makes the solve fail or, where it converges, what is wrong all the same."""
    noisy = found.randomness is not None and not found.randomness.held
    if found.in_place.writes_argument:
        return Cause.IN_PLACE
    if found.raised is not None:
        return Cause.RAISED
    blown_up = all(found.plain is not None and found.plain.trend[row] == "rising" for row in found.nonfinite)
    if found.nonfinite and not blown_up:
        return Cause.NONFINITE
    if noisy:
        return Cause.STOCHASTIC
    if found.mixing is not None and found.mixing.mixes:
        return Cause.MIXED_ROWS
    if found.runs_away:
        return Cause.RUNAWAY
    if not found.converged:
        return _failure(found)
    if found.path is not None and found.path.depends:
        return Cause.PATH_DEPENDENT
    if found.parts is not None:
        return Cause.UNLIKE_PARTS
    if found.adjoint is not None and not found.adjoint.converged:
        return Cause.ADJOINT
    return Cause.HEALTHY


def _failure(found: Findings) -> Cause:
    row = found.worst
    if found.plain is not None and found.plain.trend[row] == "nonfinite" and not found.solved[row]:
        return Cause.NONFINITE  # a solver that refuses such points creeps along the edge of f's domain
    relative, floor = found.relative[row], found.floor
    if floor is not None and floor < 0.1 and found.rtol < 4 * floor and relative <= 30 * floor:
        return Cause.DTYPE_FLOOR
    if _vanishes(found, row):
        return Cause.VANISHING
    kind = character(found)
    plain = found.plain
    if kind is not Cause.CAUSAL_FRONTIER and plain is not None and plain.converged[row]:
        if not found.plain_solver and plain.steps[row] <= found.max_iter:
            return Cause.SOLVER_MISFIT
        if kind is Cause.HEALTHY:
            return Cause.TOO_FEW_EVALUATIONS
    return Cause.UNCLEAR if kind is Cause.HEALTHY else kind


def _vanishes(found: Findings, row: int) -> bool:
    """Say whether the residual fell far while the relative one stood still: the solution is zero."""
    if found.atol > 0 or found.plain is None:
        return False
    curve = found.plain.trace[row]
    fallen = bool(curve) and curve[-1] <= 1e-2 * curve[0]
    return fallen and not found.plain.converged[row] and found.plain.size[row] <= 3e-2 * found.plain.largest[row]


def character(found: Findings) -> Cause:
    """Return what the map is for plain iteration, whatever solver was used; HEALTHY where it converges fast."""
    if not found.passed:
        return Cause.HEALTHY
    if found.runs_away:
        return Cause.RUNAWAY
    row, plain, c = found.telling, found.plain, found.contraction
    trend = None if plain is None else plain.trend[row]
    settled = plain is not None and plain.converged[row]
    if plain is not None and not settled and trend == "flat" and plain.cycle[row] < 0.15:
        return Cause.TWO_CYCLE
    if c is None:
        return Cause.HEALTHY if settled else Cause.DIVERGENCE if trend == "rising" else Cause.UNCLEAR
    i = c.rows.index(row) if row in c.rows else 0
    radius, (real, imaginary) = c.radius[i], c.eigenvalue[i]
    if plain is not None and settled and max(plain.trace[row]) > 10 * plain.trace[row][0]:
        return Cause.NON_NORMAL
    if settled and radius < 0.9 and c.growth[i] < 3:
        return Cause.HEALTHY
    if found.causality == "causal" and c.token_radius is not None and c.token_radius < 0.9:
        return Cause.CAUSAL_FRONTIER
    if c.at == "best point" and c.kappa[i] > 1e5 and trend != "rising":
        return Cause.SINGULAR
    if c.growth[i] >= 2 and (radius < 1 or trend == "falling"):
        return Cause.NON_NORMAL
    if c.largest_real[i] >= 1 and trend != "falling":
        return Cause.DIVERGENCE
    if trend == "rising" and radius < 1:
        return Cause.DIVERGENCE
    if imaginary > 0.1 * radius:
        return Cause.COMPLEX_PAIR
    if real < 0 and c.largest_real[i] < 0.98 * radius:
        return Cause.TWO_CYCLE
    return Cause.SLOW_CONTRACTION if radius >= 0.5 else Cause.HEALTHY if settled else Cause.UNCLEAR
