"""What happens when rows fail: one read after the loop, a warning or an error, and clean gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from deqlm.wrap.likely_mistakes import likely_mistake
from deqlm.wrap.rows import RowMap
from deqlm_solvers import Adjoint, Solution, Status, Stop
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.policy import FailedGrad, OnFailure, apply_policy, check_on_failure

__all__ = ["Failures"]


@dataclass(frozen=True)
class Failures:
    """Policies of one call.

    Attributes:
        on_failure: "warn", "raise" or "ignore" when a row ends neither CONVERGED nor BUDGET.
        failed_grad: rows that end NONFINITE or DIVERGED add zero to every gradient ("drop"), what autograd makes of
            them ("keep"), or an error ("raise").
        ask: the call that tells more, for the text of a failure.
        layer: what is solved, whose parts may tell what is wrong.
        map: what is solved, on rows.
        then: called with the `Adjoint` when a backward solve has been recorded.
        problem: "map" or "root", as in `Solution`; a failure of a map is looked into by a few evaluations more.
    """

    on_failure: OnFailure = "warn"
    failed_grad: FailedGrad = "drop"
    ask: str = "deqlm.diagnose(f, z0)"
    layer: Any = None
    map: RowMap | None = None
    then: Callable[[Adjoint], object] | None = None
    problem: Literal["map", "root"] = "map"

    def __post_init__(self) -> None:
        check_on_failure(self.on_failure)
        ok = self.failed_grad in ("drop", "keep", "raise")
        require(ok, "failed_grad", self.failed_grad, "'drop', 'keep' or 'raise'")
        if self.then is not None and not callable(self.then):
            raise TypeError(f"on_backward must be a function, got {type(self.then).__name__}")

    def adjoint(self) -> Adjoint:
        """Return the empty report that the backward solve will fill in."""
        return Adjoint(on_failure=self.on_failure, failed_grad=self.failed_grad, ask=self.ask, then=self.then)

    def of_call(self, then: Callable[[Adjoint], object] | None, **changes: Any) -> Failures:
        """Return the policies for a call with a callback of its own, and what else is known of it by name."""
        if then is not None and not callable(then):
            raise TypeError(f"on_backward must be a function, got {type(then).__name__}")
        return self._with(then=then, **changes)

    def of(self, f: RowMap) -> Failures:
        """Return the policies for the solve of ``f``."""
        return self._with(map=f)

    def of_layer(self, layer: Any) -> Failures:
        """Return the policies for a call of ``layer``."""
        return self._with(layer=layer)

    def _with(self, **changes: Any) -> Failures:
        made = object.__new__(type(self))  # the policies have been checked, and a call costs little else
        made.__dict__.update(self.__dict__, **changes)
        return made

    def report(self, sol: Solution, stop: Stop) -> None:
        """Apply ``on_failure``; a budget is not read for a warning."""
        if self.on_failure == "raise" or not stop.is_budget:
            self._apply(self.on_failure, sol)

    def bad_rows(self, sol: Solution, stop: Stop) -> Tensor | None:
        """Return the rows (B,) whose gradient must be dropped, or None where there is none.

        Raises:
            ConvergenceError: there is one and ``failed_grad="raise"``.
        """
        if self.failed_grad == "keep":
            return None
        if sol.worst() < int(Status.DIVERGED):
            return None
        bad = sol.status >= int(Status.DIVERGED)
        policy = "raise" if self.failed_grad == "raise" else self.on_failure
        if self.failed_grad == "raise" or stop.is_budget:
            self._apply(policy, sol)
        return bad

    def _apply(self, policy: OnFailure, sol: Solution) -> None:
        if policy == "ignore" or sol.worst() <= int(Status.BUDGET):
            return
        sol = sol.replace(problem=self.problem)
        f = self.map if self.problem == "map" else None

        def likely() -> str:
            return "" if f is None else likely_mistake(f, f.f if self.layer is None else self.layer, sol)

        told = (sol.status, sol.relative, sol.steps, "solve")
        apply_policy(policy, *told, advise=sol.advice, likely=likely, ask=self.ask)
