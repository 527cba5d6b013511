"""The contract of an update rule, which the one loop runs."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.native_rule import NativeRule
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation, Map, Solver
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.loop import run

__all__ = ["StepSolver"]


class StepSolver(Solver):
    """An update rule: it proposes the next point, and does not loop, stop, log or count.

    The loop evaluates f at each proposed point, tests it, freezes finished rows and asks for the next. What `step`
    does to a row may depend on nothing but that row.

    Class attributes:
        differentiates: `step` asks for products with the Jacobian (`Evaluator.carry`), from the first evaluation on.
        asks_host: `asks` asks something.

    Examples:
        >>> from deqlm_solvers import StepSolver, options, register_solver
        >>> @register_solver("halfway")
        ... @options
        ... class Halfway(StepSolver):
        ...     def init(self, z):
        ...         return None
        ...     def step(self, f, at, state):
        ...         return at.z + 0.5 * at.r, state
    """

    guarantees: ClassVar[frozenset[str]] = frozenset({"rows", "check_every", "half", "budget"})
    honours: ClassVar[frozenset[str]] = frozenset(Stop.__dataclass_fields__)  # type: ignore[attr-defined]
    differentiates: ClassVar[bool] = False
    asks_host: ClassVar[bool] = False

    @abstractmethod
    def init(self, z: Tensor) -> Any:
        """Return the state for a solve from ``z`` (B, N), inner dtype: all buffers, allocated once."""

    @abstractmethod
    def step(self, f: Map, at: Evaluation, state: Any) -> tuple[Tensor, Any]:
        """Return the next point (B, N), inner dtype, and the new state.

        Args:
            f: the map, for methods that need more of it; calls are counted against ``max_iter``.
            at: the evaluation just made.
            state: what `init` or the last `step` returned.
        """

    def rehearsable(self) -> bool:
        return True

    def native_rule(self) -> NativeRule | None:
        """Return the parameters of the compiled step that does the same on a CPU, or None."""
        return None

    def picked(self, state: Any) -> tuple[Tensor, tuple[str, ...]] | None:
        """Return `Solution.picked` and `Solution.choices` for the last state, or None where there was no choice."""
        return None

    def renew(self, z: Tensor, state: Any) -> Any:
        """Return the state for going on from ``z`` (B, N) after all rows were done and some no longer pass.

        Their neighbours have moved since, and what was learnt meanwhile is of points that were held.
        """
        return self.init(z)

    def final(self, state: Any) -> Tensor | None:
        """Return the rows, (B,) bool, that a bad point ends now: one that is not finite, or beyond `Stop.divergence`.

        A rule that refuses such a point and tries another one from where it was says False for the rows that have
        another one to try; the loop then takes the point for no point of theirs. ``state`` is that before the point is
        seen. None, the default, is every row.
        """
        return None

    def asks(self, at: Evaluation, state: Any) -> Tensor | None:
        """Return whether some row needs now what `step` would rather leave out, one bool on the device.

        The host learns it by the read that tests for the end, where there is one, and `step` finds it as ``f.wanted``:
        None with ``check_every=0``, where the host does not look. It is asked right before each `step`, and may take
        note of the evaluation in ``state``. Not called unless `asks_host`.
        """
        return None

    def fitted(self, unknowns: int, max_iter: int) -> StepSolver:
        """Return the rule that does the same with no longer buffers than a solve can use; self, the default, as it is.

        The loop asks for it before `init` and `native_rule`. What it leaves out must help no solve of that size.

        Args:
            unknowns: N, >= 0.
            max_iter: evaluations that the solve may make, >= 1.
        """
        return self

    if TYPE_CHECKING:  # the loop with its first argument bound, as checkers see it

        def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout, graph: bool = False) -> Solution: ...

    else:
        solve = run
