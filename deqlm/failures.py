"""What happens when rows fail: one read after the loop, a warning or an error, and clean gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqlm_solvers import Adjoint, Solution, Status, Stop
from deqlm_solvers.checks import require
from deqlm_solvers.solution import FailedGrad, OnFailure, apply_policy, check_on_failure

__all__ = ["Failures"]


@dataclass(frozen=True)
class Failures:
    """Policies of one call.

    Attributes:
        on_failure: "warn", "raise" or "ignore" when a row ends neither CONVERGED nor BUDGET.
        failed_grad: rows that end NONFINITE or DIVERGED add zero to every gradient ("drop"), what autograd makes of
            them ("keep"), or an error ("raise").
    """

    on_failure: OnFailure = "warn"
    failed_grad: FailedGrad = "drop"

    def __post_init__(self) -> None:
        check_on_failure(self.on_failure)
        ok = self.failed_grad in ("drop", "keep", "raise")
        require(ok, "failed_grad", self.failed_grad, "'drop', 'keep' or 'raise'")

    def adjoint(self) -> Adjoint:
        """Return the empty report that the backward solve will fill in."""
        return Adjoint(on_failure=self.on_failure, failed_grad=self.failed_grad)

    def report(self, sol: Solution, stop: Stop) -> None:
        """Apply ``on_failure``; a budget is not read for a warning."""
        if self.on_failure == "raise" or not stop.is_budget:
            apply_policy(self.on_failure, sol.status, sol.relative, sol.steps, "solve")

    def bad_rows(self, sol: Solution, stop: Stop) -> Tensor | None:
        """Return the rows (B,) whose gradient must be dropped, or None where there is none.

        Raises:
            ConvergenceError: there is one and ``failed_grad="raise"``.
        """
        if self.failed_grad == "keep":
            return None
        bad = sol.status >= int(Status.DIVERGED)
        if not bool(bad.any()):
            return None
        policy = "raise" if self.failed_grad == "raise" else self.on_failure
        if self.failed_grad == "raise" or stop.is_budget:
            apply_policy(policy, sol.status, sol.relative, sol.steps, "solve")
        return bad
