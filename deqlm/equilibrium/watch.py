"""What a call looks at on the way: states that were asked for, and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deqlm.gradients.base import GRADIENTS, Gradient
from deqlm.wrap.failures import Failures
from deqlm.wrap.rows import RowMap, Rows
from deqlm.wrap.solved_by import SolvedBy
from deqlm.wrap.sparing import spare
from deqlm_solvers import Layout, Map, Options, Solution, Solve, Status, options
from deqlm_solvers.core.checks import require, whole
from deqlm_solvers.core.kinds import in_transform

__all__ = ["OnEvaluation", "States", "Watch"]

OnEvaluation = Callable[[int, Any, Any], object]
"""Called after evaluation k of a solve, from 1, with (k, z, f(z)), in the structure of the state and without graphs."""


@options(kw_only=False)
class States(Options):
    """Which points on the way of a solve are returned in `Solution.states`, and how gradients reach them.

    State k is the point after k evaluations: where evaluation k + 1 was made, or, where the solve made no more or the
    row was done, the point that the solver returns. State 0 is the start. No solver restarts for it, and rows stay in
    the batch. Of a solver that differentiates f, and counts that as evaluations, it is the point at which f was called
    the next time.

    Args:
        at: numbers k >= 0, in any order.
        gradient: "same" ties every state to autograd by the gradient method of the call, as it ties the answer: the
            value of a method that takes steps lies so many steps behind the state. None leaves states without a graph.
            Or another method, an object, a name or a dict. Without grad, states have no graph.

    Raises:
        ValueError: no number, or one that is not whole and >= 0.
        TypeError, KeyError: what is no gradient method.

    Examples:
        >>> import deqlm, torch
        >>> sol = deqlm.solve(lambda z: 0.5 * z + 1, torch.zeros(1, 1), solver="fixed_point", states=(1, 2))
        >>> [state.item() for state in sol.states]
        [1.0, 1.5]
    """

    at: Sequence[int]
    gradient: Gradient | Literal["same"] | None = "same"

    def __post_init__(self) -> None:
        rule = "numbers of evaluations >= 0, such as (4, 8)"
        require(isinstance(self.at, Sequence) and not isinstance(self.at, str), "states", self.at, rule)
        require(len(self.at) > 0, "states", self.at, rule)
        for k in self.at:
            whole("states", k, 0)
        object.__setattr__(self, "at", tuple(self.at))
        if self.gradient not in ("same", None):
            object.__setattr__(self, "gradient", GRADIENTS.make(self.gradient))  # type: ignore[arg-type]
            require(not self.gradient.through_steps, "gradient", self.gradient, "one that connects a point")  # type: ignore[union-attr]


@dataclass(eq=False)
class Watch:
    """One call's states and callback of evaluations.

    Attributes:
        states: which are asked for, or None.
        on_evaluation: see `OnEvaluation`.
        seen: points of the solve by number, (B, N).
        count: evaluations so far.
        point: that the solve returned, (B, N); None where the gradient method runs it by itself.
    """

    states: States | None
    on_evaluation: OnEvaluation | None

    def __post_init__(self) -> None:
        self.seen: dict[int, Tensor] = {}
        self.count = 0
        self.point: Tensor | None = None

    @classmethod
    def of(cls, states: Sequence[int] | States | None, on_evaluation: OnEvaluation | None) -> Watch | None:
        """Return what a call looks at, or None where it asks for nothing.

        Raises:
            TypeError, ValueError: see `States`; a callback that cannot be called.
        """
        if on_evaluation is not None and not callable(on_evaluation):
            raise TypeError(f"on_evaluation must be a function, got {type(on_evaluation).__name__}")
        if states is None and on_evaluation is None:
            return None
        return cls(States(states) if not isinstance(states, States | None) else states, on_evaluation)

    def over(self, how: Solve, rows: Rows) -> Solve:
        """Return a solve that shows its evaluations here."""
        rule = "True or False with states or on_evaluation, which see all rows"
        require(how.stop.compact != "at_once", "compact", how.stop.compact, rule)
        return _Watched(how.solver, how.stop, watch=self, rows=rows)

    def close(self, sol: Solution, f: RowMap, solved_by: SolvedBy, gradient: Gradient, failures: Failures) -> Solution:
        """Return the flat solution with its states.

        Args:
            sol: of the solve, with the gradient connected.
            f: the map.
            solved_by: how the solve was made.
            gradient: of the call.
            failures: likewise.
        """
        if self.states is None:
            return sol
        method = gradient if self.states.gradient == "same" else self.states.gradient
        end = sol.z if self.point is None else self.point
        points = [self.seen.get(k, end) for k in self.states.at]
        if method is None:
            return sol.replace(states=tuple(z.detach() for z in points))
        graph = torch.is_grad_enabled() or getattr(method, "same_value", False)
        if method.through_steps or not graph:  # type: ignore[union-attr]
            return sol.replace(states=tuple(points))
        tie = _Tie(f, solved_by, method, replace(failures, then=None), sol.status >= int(Status.DIVERGED))  # type: ignore[arg-type]
        return sol.replace(states=tuple(tie(z.detach()) for z in points))


@options(kw_only=True)
class _Watched(Solve):
    """A solve whose evaluations are seen.

    Args:
        watch: by whom.
        rows: how states are packed.
    """

    watch: Watch
    rows: Rows

    def seen(self, f: Map) -> Map:
        """Return f as a map that shows what is evaluated, and of which no row can be left out."""
        watch, rows = self.watch, self.rows
        watch.seen, watch.count = {}, 0
        asked = () if watch.states is None else watch.states.at

        def evaluate(z: Tensor) -> Tensor:
            if in_transform(z):
                return f(z)
            k = watch.count
            watch.count += 1
            if k in asked:
                watch.seen[k] = forward_ad.unpack_dual(z).primal.clone()
            fz = f(z)
            if watch.on_evaluation is not None:
                with torch.no_grad():
                    point, value = (forward_ad.unpack_dual(t).primal.detach() for t in (z, fz))
                    watch.on_evaluation(k + 1, rows.unpack(point), rows.unpack(value))
            return fz

        return evaluate

    def __call__(self, f: Map, z0: Tensor, layout: Layout | None = None) -> Solution:
        sol = super().__call__(self.seen(f), z0, layout)
        self.watch.point = sol.z
        return sol


@dataclass(eq=False)
class _Tie:
    """Ties points of one call to autograd, rows that failed left out."""

    f: RowMap
    solved_by: SolvedBy
    method: Gradient
    failures: Failures
    bad: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        drop = self.failures.failed_grad != "keep" and bool(self.bad.any())
        spared = spare(self.f, z, self.bad if drop else None, self.solved_by.layout.together)
        if spared is None:
            return z
        sound, point, source = spared
        sound.solved_by = self.solved_by if source is None else self.solved_by.select(source)
        tied = self.method.connect(sound, point, self.failures.adjoint())
        return torch.where(self.bad[:, None], z, tied) if drop else tied
