"""One solve in numbers, read from the device when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deqlm_solvers import Solution, Status

__all__ = ["Call", "Entry"]


@dataclass(frozen=True)
class Call:
    """One call of a module that solves.

    Attributes:
        module: its name in the model; that of its class where it is the model.
        step: of the training, as `Monitor.step` said then.
        grad: whether grad mode was on.
        rows: B.
        evaluations: of f, the gradient's included.
        steps: mean over rows of the evaluations until a row was done.
        most: the largest of these.
        converged: share of rows that ended CONVERGED; budgets test nothing and do not count as such.
        failed: rows that ended neither CONVERGED nor BUDGET.
        residual: largest relative residual; infinite where f never returned a finite value.
        products: with the transposed Jacobian, of backward solves; 0 where none has run.
        backward_converged: share of rows whose backward solve converged; None where none has run.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Tanh())
        >>> with deqlm.monitor(deq) as seen:
        ...     y = deq(torch.ones(2, 3))
        >>> seen.calls[0].rows, seen.calls[0].converged
        (2, 1.0)
    """

    module: str
    step: int
    grad: bool
    rows: int
    evaluations: int
    steps: float
    most: int
    converged: float
    failed: int
    residual: float
    products: int
    backward_converged: float | None


@dataclass(frozen=True, eq=False)
class Entry:
    """A call whose numbers are still on the device; its backward may not have run yet."""

    module: str
    step: int
    grad: bool
    sol: Solution

    def read(self) -> Call:
        """Return the numbers; one read from the device, and one more where backward has run."""
        sol, rows = self.sol, self.sol.status.numel()
        steps, most, converged, failed, residual = 0.0, 0.0, 1.0, 0.0, 0.0
        if rows:
            found = sol.steps.double().mean(), sol.steps.max(), sol.converged.double().mean()
            numbers = (*found, sol.failed.sum(), sol.relative.max())
            steps, most, converged, failed, residual = torch.stack([t.double() for t in numbers]).tolist()
        adjoint = sol.adjoint
        backward = None
        if adjoint is not None and adjoint.status is not None and rows:
            backward = (adjoint.status == int(Status.CONVERGED)).double().mean().item()
        return Call(
            module=self.module,
            step=self.step,
            grad=self.grad,
            rows=rows,
            evaluations=sol.cost.evaluations,
            steps=steps,
            most=int(most),
            converged=converged,
            failed=int(failed),
            residual=residual,
            products=0 if adjoint is None else adjoint.cost.vjps,
            backward_converged=backward,
        )
