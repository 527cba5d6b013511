"""What a solve returns: tensors with one entry per row, left on the device until somebody asks."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require
from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.status import Status

__all__ = ["Adjoint", "ConvergenceError", "ConvergenceWarning", "OnFailure", "Solution", "check_on_failure"]

RUNAWAY = (
    "the state grows and the residual does not fall: a layer z + F(z), such as a pre-norm block, has no fixed point in "
    "reach; put a norm after the sum, such as DEQ(nn.Sequential(layer, nn.LayerNorm(width)))"
)
"""What to try for rows that ran away."""

OnFailure = Literal["warn", "raise", "ignore"]
FailedGrad = Literal["drop", "keep", "raise"]


class ConvergenceWarning(UserWarning):
    """Some rows of a solve did not converge; filtered by Python's own warning filters.

    Examples:
        >>> import warnings
        >>> warnings.filterwarnings("ignore", category=ConvergenceWarning)  # or DEQ(on_failure="ignore")
    """


class ConvergenceError(RuntimeError):
    """Some rows of a solve did not converge, and the caller asked for an exception.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import FixedPoint, Solve
        >>> Solve(FixedPoint())(lambda z: 1 - 2 * z, torch.zeros(1, 1)).raise_if_failed()
        Traceback (most recent call last):
        deqlm_solvers.core.solution.ConvergenceError: solve: 1 DIVERGED (rows 0) of 1 rows after at most 28...
    """


def check_on_failure(value: str) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the three policies."""
    require(value in ("warn", "raise", "ignore"), "on_failure", value, "'warn', 'raise' or 'ignore'")


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
        if unknown := changes.keys() - self.__dict__.keys():
            raise TypeError(f"Solution has no field {min(unknown)!r}")
        # dataclasses.replace costs as much as an evaluation of a small f
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, **changes)
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
        told = kind.hint if self.solver is None else self.solver.advice(kind)
        if kind is not Status.DIVERGED or self.runaway is None or not bool(self.runaway.any()):
            return told
        others = bool(((self.status == int(kind)) & ~self.runaway).any())
        return f"{RUNAWAY}; of the other rows, {told}" if others else RUNAWAY

    def summary(self) -> str:
        """Describe the outcome in words: rows per status, worst residual, what to try, which method answered.

        Reads from the device.
        """
        text = _summary("solve", self.status, self.relative, self.steps, self.advice)
        chosen = _chosen(self.picked, self.choices)
        return f"{text}; {chosen}" if chosen else text

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
        batch_shape: shape of the entries above; None is (B,).
        picked: index into ``choices`` of the method that solved the row, int8, where one stood in for another; else
            None.
        choices: names of the methods; empty where ``picked`` is None.
        ask: the call that tells more of a failure, for its text.

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

    def reshape(self, batch_shape: tuple[int, ...]) -> None:
        """Give what is and what will be recorded one entry per row in the batch shape."""
        self.batch_shape = batch_shape
        if self.growth is not None:
            self.growth = self._shaped(self.growth)

    def _shaped(self, values: Tensor) -> Tensor:
        return values if self.batch_shape is None else values.reshape(self.batch_shape)

    @property
    def ran(self) -> bool:
        """True once a backward solve has been recorded."""
        return self.status is not None

    @property
    def converged(self) -> Tensor | None:
        """True per row whose backward solve is within tolerance; None before backward."""
        return None if self.status is None else self.status == int(Status.CONVERGED)

    def record(self, sol: Solution, cost: Cost, report: bool = True) -> None:
        """Add the cost of a backward solve; with ``report`` also keep its outcome and apply the failure policy."""
        self.cost = self.cost + cost
        if not report:
            return
        self.status, self.steps, self.residual = (self._shaped(t) for t in (sol.status, sol.steps, sol.residual))
        self.picked, self.choices = None if sol.picked is None else self._shaped(sol.picked), sol.choices
        if self.failed_grad == "raise":
            apply_policy(
                "raise",
                torch.where(sol.status < int(Status.DIVERGED), 0, sol.status),
                sol.residual,
                sol.steps,
                "backward solve",
                advise=sol.advice,
                ask=self.ask,
            )
        if self.on_failure != "ignore":
            told = (sol.status, sol.residual, sol.steps, "backward solve")
            apply_policy(self.on_failure, *told, advise=sol.advice, ask=self.ask)

    def record_terms(self, growth: Tensor | None, cost: Cost) -> None:
        """Add the cost of a truncated series that was summed in backward, and keep the growth of its terms, (B,)."""
        self.cost = self.cost + cost
        self.growth = None if growth is None else self._shaped(growth)

    def __repr__(self) -> str:
        if self.status is not None and self.residual is not None and self.steps is not None:
            text = _summary("backward solve", self.status, self.residual, self.steps)
            chosen = _chosen(self.picked, self.choices)
            return "; ".join(part for part in (text, chosen, f"its cost: {self.cost}") if part)
        if self.growth is not None:
            worst = f"{self.growth.max().item():.2g}" if self.growth.numel() else "none"
            return f"gradient: truncated series, largest growth per term {worst}"
        return "backward solve: not run yet"


def apply_policy(
    policy: OnFailure,
    status: Tensor,
    relative: Tensor,
    steps: Tensor,
    what: str,
    *,
    advise: Callable[[Status], str] = lambda kind: kind.hint,
    likely: Callable[[], str] = str,
    ask: str = "",
) -> None:
    """Warn or raise when a row failed; reads one flag from the device.

    The text of a warning holds no numbers, so that Python shows it once per place and not once per call; an error tells
    everything.

    Args:
        policy: what to do.
        status: of every row.
        relative: likewise, the relative residual.
        steps: likewise, evaluations.
        what: "solve" or "backward solve".
        advise: returns what to try after a status.
        likely: called when a row failed; what is probably wrong, which is told in place of the hints of the statuses.
        ask: the call that tells more.
    """
    if policy == "ignore" or not bool((status > int(Status.BUDGET)).any()):
        return
    cause = likely()
    more = f" print({ask}) says more." if ask else ""
    if policy == "raise":
        told = f". Likely: {cause}" if cause else ""
        raise ConvergenceError(f"{_summary(what, status, relative, steps, _silent if cause else advise)}{told}.{more}")
    seen = [kind for kind in Status if kind.failed and bool((status == int(kind)).any())]
    names = ", ".join(kind.name for kind in seen)
    advice = f"Likely: {cause}." if cause else " ".join(f"{k.name}: {advise(k)}." for k in seen)
    text = f"{what}: some rows ended {names}; {_WHERE[what]} says which. {advice}{more}"
    warnings.warn(text, ConvergenceWarning, stacklevel=user_level())


def _silent(kind: Status) -> str:
    return ""


_WHERE = {
    "solve": "Solution.summary()",
    "backward solve": "Solution.adjoint (its tolerance is that of gradient=Implicit(solve=Solve(solver, stop)))",
}


def user_level() -> int:
    """Return the stacklevel of the nearest caller outside this library and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    return level


_OURS = ("deqlm", "deqlm_solvers", "torch")


def _summary(
    what: str,
    status: Tensor,
    relative: Tensor,
    steps: Tensor,
    advise: Callable[[Status], str] = lambda kind: kind.hint,
) -> str:
    codes = status.flatten().tolist()
    if not codes:
        return f"{what}: no rows"
    parts, told = [], []
    for kind in Status:
        rows = [i for i, code in enumerate(codes) if code == kind]
        if rows:
            shown = f" (rows {_listing(rows)})" if kind.failed else ""
            parts.append(f"{len(rows)} {kind.name}{shown}")
            hint = advise(kind) if kind.failed else ""
            if hint:
                told.append(f"{kind.name}: {hint}")
    worst = relative.flatten().max().item()
    text = f"{what}: {', '.join(parts)} of {len(codes)} rows after at most {int(steps.max())} evaluations, "
    text += f"largest relative residual {worst:.2g}"
    return text + "".join(f". {hint}" for hint in told)


def _chosen(picked: Tensor | None, choices: tuple[str, ...]) -> str:
    """Return "picked: 30 fixed_point, 2 anderson", in the order of ``choices``, or nothing."""
    if picked is None or not picked.numel():
        return ""
    counts = torch.bincount(picked.flatten().long(), minlength=len(choices)).tolist()
    return "picked: " + ", ".join(f"{n} {name}" for n, name in zip(counts, choices, strict=True) if n)


def _listing(rows: list[int], most: int = 8) -> str:
    shown = ", ".join(map(str, rows[:most]))
    return shown if len(rows) <= most else f"{shown}, ... {len(rows)} in all"


@functools.cache
def _row_axes() -> dict[str, int]:
    return {f.name: f.metadata["row_axis"] for f in fields(Solution) if "row_axis" in f.metadata}
