"""What a language model says where a solve did not converge."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from deqlm.sequence.modes import Mode
from deqlm.wrap.failures import Failures
from deqlm_solvers import ConvergenceError, ConvergenceWarning, FixedPoint, Solution, Solve, Status, Stop
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.policy import FailedGrad, OnFailure, user_level

__all__ = ["LMFailures", "WhenFailed", "advice", "check_when_failed"]

ASK = "deqlm.diagnose(model, ids)"
"""The call that tells more."""

WhenFailed = Literal["auto", "warn", "raise", "ignore"]


def check_when_failed(value: str) -> None:
    """Raise ``ValueError`` unless ``value`` is one of `WhenFailed`."""
    require(value in get_args(WhenFailed), "on_failure", value, f"one of {get_args(WhenFailed)}")


@dataclass(frozen=True)
class LMFailures:
    """Policies of a model.

    Attributes:
        on_failure: "warn", "raise" or "ignore" when a row ends neither CONVERGED nor BUDGET. "auto" warns without grad;
            with grad, where solves that are cut short are what is trained, only of rows that end DIVERGED or NONFINITE.
        failed_grad: as for `deqlm.wrap.failures.Failures`.

    Raises:
        ValueError: another policy.
    """

    on_failure: WhenFailed = "auto"
    failed_grad: FailedGrad = "drop"

    def __post_init__(self) -> None:
        check_when_failed(self.on_failure)
        Failures(failed_grad=self.failed_grad)

    def of_call(self, how: Solve, mode: Mode, on_failure: WhenFailed | None = None) -> Failures:
        """Return the policies of one call in the grad mode of now.

        Args:
            how: solver and stop in use.
            mode: how the tokens are cut.
            on_failure: in place of the model's; None is that.
        """
        policy = self.on_failure if on_failure is None else on_failure
        check_when_failed(policy)
        cut_short = policy == "auto" and torch.is_grad_enabled()
        told: OnFailure = "warn" if policy == "auto" else policy
        least = Status.DIVERGED if cut_short else Status.MAX_ITER
        return _CallFailures(
            on_failure=told,
            failed_grad=self.failed_grad,
            ask=ASK,
            how=how,
            mode=mode,
            least=least,
        )


@dataclass(frozen=True, kw_only=True)
class _CallFailures(Failures):
    """Policies of one call, whose words are those of a language model.

    Attributes:
        how: solver and stop in use.
        mode: how the tokens are cut.
        least: the first status that is told.
    """

    how: Solve
    mode: Mode
    least: Status

    def report(self, sol: Solution, stop: Stop) -> None:
        """Apply ``on_failure``; a budget is not read for a warning."""
        if self.on_failure == "ignore" or (stop.is_budget and self.on_failure != "raise"):
            return
        if not bool((sol.status >= int(self.least)).any()):
            return
        if self.on_failure == "raise":
            raise ConvergenceError(f"{sol.summary()}; of this model: {self._advice(sol.status)}")
        # no numbers, so that Python shows it once per place
        names = ", ".join(kind.name for kind in _kinds(sol.status))
        text = f"the model's solve: some rows ended {names}; out.solution.summary() says which. "
        text = f"{text}{self._advice(sol.status)} print({ASK}) says why"
        warnings.warn(text, ConvergenceWarning, stacklevel=user_level())

    def _advice(self, status: Tensor) -> str:
        return advice(status, self.how, self.mode)


def advice(status: Tensor, how: Solve, mode: Mode) -> str:
    """Return what to try after the solve of a model failed, as sentences.

    Args:
        status: of rows, int8, any shape.
        how: solver and stop in use.
        mode: how the tokens were cut.

    Examples:
        >>> from deqlm import Simultaneous
        >>> print(advice(torch.tensor([2]), Solve(FixedPoint(), Stop(max_iter=24)), Simultaneous()))
        MAX_ITER: give more evaluations, stop=Stop(max_iter=96), or take mode='auto': chunks of tokens, each with ...
    """
    return " ".join(f"{kind.name}: {_remedy(kind, how, mode)}." for kind in _kinds(status))


def _kinds(status: Tensor) -> list[Status]:
    return [kind for kind in Status if kind.failed and bool((status == int(kind)).any())]


def _remedy(kind: Status, how: Solve, mode: Mode) -> str:
    if kind is Status.NONFINITE:
        return "f returned NaN or infinity: look for NaN in weights and embeddings, or overflow in half precision"
    if kind is Status.DIVERGED:
        return "the state grows without end: normalise it at the end of the map, as Backbone does"
    if kind is Status.STALLED:
        return "the residual stopped falling: loosen rtol, or raise patience"
    more = f"give more evaluations, stop={_written(how.stop.replace(max_iter=4 * how.stop.max_iter))}"
    if remedy := mode.remedy():
        return f"{more}, or {remedy}"
    if isinstance(how.solver, FixedPoint):
        return f"{more}, or take another solver: plain iteration may go round for ever where Anderson() converges"
    return f"{more}, or take another solver"


def _written(stop: Stop) -> str:
    """Return a rule as a user would write it."""
    defaults = {name: field.default for name, field in type(stop).__dataclass_fields__.items()}  # type: ignore[attr-defined]
    given = [f"{name}={getattr(stop, name)!r}" for name, value in defaults.items() if getattr(stop, name) != value]
    return f"Stop({', '.join(given)})"
