"""The outcome of a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deqlm_solvers.core.advice import adjoint_advice
from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.policy import FailedGrad, OnFailure, apply_policy, chosen, outcome
from deqlm_solvers.core.status import Status

__all__ = ["Adjoint"]


@dataclass(eq=False)
class Adjoint:
    """Outcome of a gradient: status, steps and residual of the backward solve, or the growth of truncated terms.

    Empty until backward has run (`ran`). Truncated methods, which solve nothing, fill in only `growth`.

    Attributes:
        on_failure: what to do when the backward solve does not converge.
        failed_grad: what to do with its rows that end NONFINITE or DIVERGED: "drop" (their gradient is zero), "keep" or
            "raise".
        status: `Status` per row, int8, or None.
        steps: products with the transposed Jacobian until the row was done, or None.
        residual: ||J^T w + g - w|| / ||g|| of the returned w, float64, or None.
        growth: per row, factor by which one more term of a truncated series shrinks (< 1) or grows (> 1), or None.
        cost: summed over all backward solves of this solution; the pass that carries a solved cotangent on to
            parameters and inputs, one per backward, is not in it.
        batch_shape: shape of the entries above; None is (B,). Where several right-hand sides were solved for the same
            rows at once, as torch.func.jacrev asks, there is a dimension more in front.
        picked: index into ``choices`` of the method that solved the row, int8, where one stood in for another; else
            None.
        choices: names of the methods; empty where ``picked`` is None.
        ask: the call that tells more of a failure, for its text.
        then: called with this report whenever a backward solve or series has been recorded; no copy has it.

    Examples:
        >>> import deqlm, torch
        >>> w = torch.tensor(0.5, requires_grad=True)
        >>> sol = deqlm.solve(lambda z: w * z + 1, torch.zeros(2, 3))
        >>> sol.adjoint.ran
        False
        >>> sol.z.sum().backward()
        >>> sol.adjoint.converged.tolist()
        [True, True]
    """

    on_failure: OnFailure = "warn"
    failed_grad: FailedGrad = "drop"
    status: Tensor | None = None
    steps: Tensor | None = None
    residual: Tensor | None = None
    growth: Tensor | None = None
    cost: Cost = field(default_factory=Cost)
    batch_shape: tuple[int, ...] | None = None
    picked: Tensor | None = None
    choices: tuple[str, ...] = ()
    ask: str = ""
    then: Callable[[Adjoint], object] | None = None

    def reshape(self, batch_shape: tuple[int, ...]) -> None:
        """Give what is and what will be recorded one entry per row in the batch shape."""
        self.batch_shape = batch_shape
        if self.growth is not None:
            self.growth = self._shaped(self.growth)

    def _shaped(self, values: Tensor) -> Tensor:
        if self.batch_shape is None:
            return values
        several = values.shape[0] > math.prod(self.batch_shape)
        return values.reshape((-1, *self.batch_shape) if several else self.batch_shape)

    @property
    def ran(self) -> bool:
        """True once a backward solve has been recorded."""
        return self.status is not None

    @property
    def converged(self) -> Tensor | None:
        """True per row whose backward solve is within tolerance; None before backward."""
        return None if self.status is None else self.status == int(Status.CONVERGED)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "then": None}

    def record(self, sol: Any, cost: Cost, report: bool = True) -> None:
        """Add the cost of a backward solve; with ``report`` also keep its outcome and apply the failure policy.

        Args:
            sol: the `Solution` of that solve.
            cost: in products with J^T, or with J.
            report: it is the outcome to tell.
        """
        self.cost = self.cost + cost
        if not report:
            return
        self.status, self.steps, self.residual = (self._shaped(t) for t in (sol.status, sol.steps, sol.residual))
        self.picked, self.choices = None if sol.picked is None else self._shaped(sol.picked), sol.choices
        if self.then is not None:
            self.then(self)
        if sol.worst() <= int(Status.BUDGET):
            return
        if self.failed_grad == "raise":
            apply_policy(
                "raise",
                torch.where(sol.status < int(Status.DIVERGED), 0, sol.status),
                sol.residual,
                sol.steps,
                "backward solve",
                advise=adjoint_advice,
                ask=self.ask,
            )
        if self.on_failure != "ignore":
            told = (sol.status, sol.residual, sol.steps, "backward solve")
            apply_policy(self.on_failure, *told, advise=adjoint_advice, ask=self.ask)

    def record_terms(self, growth: Tensor | None, cost: Cost) -> None:
        """Add the cost of a truncated series that was summed in backward, and keep the growth of its terms, (B,)."""
        self.cost = self.cost + cost
        self.growth = None if growth is None else self._shaped(growth)
        if self.then is not None:
            self.then(self)

    def __repr__(self) -> str:
        if self.status is not None and self.residual is not None and self.steps is not None:
            text = outcome("backward solve", self.status, self.residual, self.steps, adjoint_advice)
            told = chosen(self.picked, self.choices)
            return "; ".join(part for part in (text, told, f"its cost: {self.cost}") if part)
        if self.growth is not None:
            worst = f"{self.growth.max().item():.2g}" if self.growth.numel() else "none"
            return f"gradient: truncated series, largest growth per term {worst}"
        return "backward solve: not run yet"
