"""What a solve returns: tensors with one entry per row, left on the device until somebody asks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from torch import Tensor

from deqlm_solvers.core.adjoint import Adjoint
from deqlm_solvers.core.advice import root_advice
from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.detached import detached
from deqlm_solvers.core.policy import RUNAWAY, apply_policy, chosen, outcome
from deqlm_solvers.core.status import Status

__all__ = ["Report", "Solution"]


class Report(Protocol):
    """Fields of a `Solution` that are made when somebody reads one of them, and what is known without.

    Attributes:
        worst: largest status of a row, as a number; 0 where there is no row.
    """

    worst: int

    def field(self, name: str) -> Tensor | None:
        """Return ``residual``, ``relative``, ``steps``, ``status``, ``runaway`` or ``first``."""
        ...


_ROWS, _ROWS_SECOND = {"row_axis": 0}, {"row_axis": 1}
"""Metadata of a field that holds one entry per row: the axis along which they lie."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A solve's result, one entry per row, on the device of the state.

    Attributes:
        z: returned point: (B, N) from a solver; the structure, shape and dtype of ``z0`` from `deqlm.solve` and `DEQ`.
        residual: ||f(z) - z|| of the returned point in the norm of `Stop` (worst token or leaf where those are tested),
            float64; infinite where f never returned a finite value.
        relative: residual divided by max(||f(z)||, s), of the same point, float64.
        steps: evaluations of f until the row was done, int64.
        status: `Status` values, int8.
        cost: what was spent, on the whole batch.
        residual_of: "z", or "previous" where the reported residual is that of the point before the returned one:
            z_{K-1} of a budget, the z whose f(z) is returned (keep="best_f"), or the solved point where a gradient
            method returns a later one (`Phantom`, `OneStep`).
        trace: residual of every evaluation, (evaluations, B), NaN where not tested; None unless asked for. After a row
            is done it repeats the row's own last residual.
        token_steps: (B, L) evaluation from which each token stayed within tolerance, 0 where it did not; None unless
            per="token".
        adjoint: outcome of the backward solve; filled in when backward has run. None without a gradient.
        picked: index into ``choices`` of the method that produced the row's answer, int8; None where there was nothing
            to choose from.
        choices: names of the methods that were to choose from; empty where ``picked`` is None.
        runaway: True for rows that are DIVERGED because the state ran away: ||f(z) - z|| is within a tolerance relative
            to ||f(z)|| only because z grew, as on layers z + F(z). None where nothing was tested.
        first: ||f(z) - z|| and max(||z||, ||f(z)||) at the start, (2, B) float64; None where nothing was tested.
        solver: what solved it, by which the advice goes.
        problem: "map", z = f(z), or "root", F(z) = 0, of which f is z - F(z): by it the advice goes, too.
        states: points on the way, each like ``z``, one per evaluation that was asked for; empty where none was.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve
        >>> sol = Solve()(lambda z: 0.5 * z + 1, torch.zeros(2, 3))
        >>> sol.converged.tolist(), sol.steps.tolist(), sol.cost.evaluations
        ([True, True], [3, 3], 3)
    """

    z: Any
    residual: Tensor = field(metadata=_ROWS)
    relative: Tensor = field(metadata=_ROWS)
    steps: Tensor = field(metadata=_ROWS)
    status: Tensor = field(metadata=_ROWS)
    cost: Cost = field(default_factory=Cost)
    residual_of: Literal["z", "previous"] = "z"
    trace: Tensor | None = field(default=None, metadata=_ROWS_SECOND)
    token_steps: Tensor | None = field(default=None, metadata=_ROWS)
    adjoint: Adjoint | None = None
    picked: Tensor | None = field(default=None, metadata=_ROWS)
    choices: tuple[str, ...] = ()
    runaway: Tensor | None = field(default=None, metadata=_ROWS)
    first: Tensor | None = field(default=None, metadata=_ROWS_SECOND)
    solver: Any = None
    problem: Literal["map", "root"] = "map"
    states: tuple[Any, ...] = ()

    @classmethod
    def told(cls, report: Report, **known: Any) -> Self:
        """Return a solution whose fields of rows are made when somebody reads them; ``known`` are the others."""
        made = object.__new__(cls)
        made.__dict__.update(known, _report=report, _worst=report.worst)
        return made

    if not TYPE_CHECKING:  # a type checker would take any name for a field

        def __getattr__(self, name: str) -> Any:
            report = self.__dict__.get("_report")
            if report is None or name not in _names():
                raise AttributeError(f"Solution has no field {name!r}")
            value = self.__dict__[name] = report.field(name)
            return value

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _names()}

    def worst(self) -> int:
        """Return the largest status of a row as a number, 0 where there is none; a read unless an engine told it."""
        if "_worst" not in self.__dict__:
            self.__dict__["_worst"] = int(self.status.max()) if self.status.numel() else 0
        return self.__dict__["_worst"]

    @property
    def converged(self) -> Tensor:
        """True for rows whose returned point is within tolerance, bool."""
        return self.status == int(Status.CONVERGED)

    @property
    def failed(self) -> Tensor:
        """True for rows that ended neither CONVERGED nor BUDGET, bool."""
        return self.status > int(Status.BUDGET)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        if unknown := changes.keys() - _names():
            raise TypeError(f"Solution has no field {min(unknown)!r}")
        # dataclasses.replace costs as much as an evaluation of a small f
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, **changes)
        if "status" in changes:
            made.__dict__.pop("_worst", None)
        return made

    def detach(self) -> Self:
        """Return the same without a graph; its ``adjoint`` is a copy, which no later backward fills in."""
        cut = {name: detached(getattr(self, name)) for name in ("z", "states")}
        return self.replace(**cut, adjoint=copy.copy(self.adjoint))

    def without_state(self) -> Self:
        """Return the same with no tensor of the state: what may be kept, however large the states are.

        The ``adjoint`` is the same object, which backward fills in.
        """
        return self.replace(z=None, states=())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.detach().__getstate__(), memo))
        return made

    def map_rows(self, change: Callable[[Tensor, int], Tensor]) -> Self:
        """Return the same with every field that has one entry per row changed, z left out.

        Args:
            change: called with a tensor and the axis along which its rows lie.
        """
        return self.replace(
            **{
                name: change(value, axis)
                for name, axis in _row_axes().items()
                if (value := getattr(self, name)) is not None
            }
        )

    def merge_rows(self, other: Solution, merge: Callable[[Tensor, Tensor], Tensor]) -> Self:
        """Return the same with ``merge(own, other's)`` in every field whose first axis is that of rows, z left out.

        What only one of the two knows becomes None.
        """
        mine, theirs = (
            {name: getattr(sol, name) for name, axis in _row_axes().items() if axis == 0} for sol in (self, other)
        )
        known = {name for name in mine if mine[name] is not None and theirs[name] is not None}
        return self.replace(**{name: merge(mine[name], theirs[name]) if name in known else None for name in mine})

    def advice(self, kind: Status) -> str:
        """Return what to try for rows that ended ``kind``, which depends on the solver; empty where that is no failure.

        Reads from the device where rows are DIVERGED.
        """
        if self.problem == "root":
            return root_advice(kind)
        told = kind.hint if self.solver is None else self.solver.advice(kind)
        if kind is not Status.DIVERGED or self.runaway is None or not bool(self.runaway.any()):
            return told
        others = bool(((self.status == int(kind)) & ~self.runaway).any())
        return f"{RUNAWAY}; of the other rows, {told}" if others else RUNAWAY

    def summary(self) -> str:
        """Describe the outcome in words: rows per status, worst residual, what to try, which method answered.

        Reads from the device.
        """
        text = outcome("solve", self.status, self.relative, self.steps, self.advice)
        told = chosen(self.picked, self.choices)
        return f"{text}; {told}" if told else text

    def raise_if_failed(self) -> Self:
        """Return self, or raise when a row failed. Reads from the device once.

        Raises:
            ConvergenceError: which rows failed, why, and what to try.
        """
        apply_policy("raise", self.status, self.relative, self.steps, "solve", advise=self.advice)
        return self

    def __repr__(self) -> str:
        lines = [self.summary()]
        if self.residual_of == "previous":
            lines.append("the residual is that of the point before the returned one")
        lines.append(f"cost: {self.cost}")
        if self.adjoint is not None:
            lines.append(repr(self.adjoint))
        return "Solution(" + "; ".join(lines) + ")"


for _name in ("first", "runaway"):
    delattr(Solution, _name)  # a default on the class would hide what is made when it is read


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(f.name for f in fields(Solution))


@functools.cache
def _row_axes() -> dict[str, int]:
    return {f.name: f.metadata["row_axis"] for f in fields(Solution) if "row_axis" in f.metadata}
