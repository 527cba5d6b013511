"""How a row ended."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Status"]


class Status(IntEnum):
    """Outcome of one row; stored as an int8 tensor, so that no host sync is needed to keep it.

    Where several hold, the first of CONVERGED, NONFINITE, DIVERGED, STALLED, MAX_ITER wins. A later NaN never
    revokes CONVERGED.

    Examples:
        >>> Status(0).name, Status.STALLED.failed
        ('CONVERGED', True)
    """

    CONVERGED = 0
    """The residual of the returned point is within tolerance, and not only because the state has grown."""
    BUDGET = 1
    """A fixed number of evaluations was asked for and made; nothing was tested. No failure."""
    MAX_ITER = 2
    """``max_iter`` evaluations were made, or a share of the other rows had passed (`Stop.share`), and no tested point
    was within tolerance."""
    STALLED = 3
    """No progress for ``patience`` evaluations, or the residual and f(z) vanish together, or another library's solver
    gave up before ``max_iter``."""
    DIVERGED = 4
    """The residual grew beyond ``divergence`` times the row's first one, or is within a relative tolerance only because
    the state has grown (`Solution.runaway`)."""
    NONFINITE = 5
    """f returned NaN or infinity."""

    @property
    def failed(self) -> bool:
        """True for every outcome but CONVERGED and BUDGET."""
        return self > Status.BUDGET

    @property
    def hint(self) -> str:
        """What to try, in one sentence; empty for outcomes that are no failure."""
        return _HINTS.get(self, "")


_HINTS = {
    Status.MAX_ITER: "raise max_iter, loosen rtol, or try another solver (`deqlm compare` shows which one fits)",
    Status.STALLED: (
        "the residual stopped falling relative to f(z): loosen rtol, set atol if the solution is zero, "
        "or try another solver"
    ),
    Status.DIVERGED: "f expands: damp it (FixedPoint(damping=0.5)), use Anderson or Broyden, or scale the layer down",
    Status.NONFINITE: "f returned NaN or infinity: look for NaN in the inputs, overflow, or division by zero in f",
}
