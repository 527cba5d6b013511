"""A solver together with its stopping rule."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require
from deqlm_solvers.core.dtypes import evaluated_dtype
from deqlm_solvers.core.kept import Kept
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.options import Options, options
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import SOLVERS, Map, Solver
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.evaluator import check_start
from deqlm_solvers.loop.loop import unmoved
from deqlm_solvers.methods.anderson import Anderson

__all__ = ["Solve"]


@options(kw_only=False)
class Solve(Options):
    """How to solve: a solver and a `Stop`; the same type for forward and backward solves.

    Args:
        solver: an object, a registered name, or a dict with ``name`` and options.
        stop: a `Stop`, or a dict of its fields.

    Raises:
        ValueError: the solver cannot honour a field of ``stop`` that differs from its default, or a value of it.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve, Stop
        >>> solve = Solve("fixed_point", Stop(rtol=1e-6))
        >>> solve(lambda z: 0.5 * z + 1, torch.zeros(2, 3)).z[0, 0].item()
        1.999...
    """

    solver: Solver = Anderson()
    stop: Stop = Stop()

    if TYPE_CHECKING:  # what the fields are made of; dataclass writes the one that runs

        def __init__(
            self,
            solver: str | Mapping[str, Any] | Solver = ...,
            stop: Stop | Mapping[str, Any] = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "solver", SOLVERS.make(self.solver))
        if isinstance(self.stop, dict):
            object.__setattr__(self, "stop", Stop.from_dict(self.stop))
        require(isinstance(self.stop, Stop), "stop", self.stop, "a Stop, such as Stop(rtol=1e-3), or a dict of fields")
        if self.stop.compact == "at_once" and self.solver.steps_evaluate:
            raise ValueError(
                f"solver {self.solver.name!r} cannot honour Stop(compact='at_once'): its steps evaluate f on all rows; "
                "use compact=True, or a solver such as 'anderson'"
            )
        if self.stop.collective and self.solver.steps_evaluate:
            raise ValueError(
                f"solver {self.solver.name!r} cannot honour Stop(collective=True): its steps evaluate f as often as "
                "the rows of one process need; use a solver such as 'anderson', 'broyden' or 'fixed_point'"
            )
        if self.solver.honours >= Stop.__dataclass_fields__.keys():  # type: ignore[attr-defined]
            return
        for name, field in Stop.__dataclass_fields__.items():  # type: ignore[attr-defined]
            value = getattr(self.stop, name)
            if value != field.default and name not in self.solver.honours:
                known = ", ".join(sorted(self.solver.honours)) or "none (set the class attribute honours)"
                raise ValueError(
                    f"solver {self.solver.name!r} cannot honour Stop({name}={value!r}); fields it honours: {known}"
                )

    def __call__(self, f: Map, z0: Tensor, layout: Layout | None = None) -> Solution:
        """Solve z = f(z) from ``z0`` (B, N), without a graph.

        Args:
            f: maps (B, N) to (B, N), same dtype and device.
            z0: start, floating point; never written to.
            layout: leaves, tokens, scale and mask of the rows; None for plain rows.

        Raises:
            TypeError, ValueError: a bad start, or an f that changes shape, dtype or device or works in place.
        """
        if self.stop.rtol == "auto":
            return self.resolve(z0)(f, z0, layout)
        if self.stop.max_iter == 0:
            return unmoved(z0).replace(solver=self.solver)
        return self.solver.solve(f, z0, self.stop, layout or Layout()).replace(solver=self.solver)

    def seen(self, f: Map) -> Map:
        """Return f as whoever runs the loop by himself is to evaluate it; a solve that is watched shows it."""
        return f

    def resolve(self, z0: Tensor, *dtypes: torch.dtype) -> Self:
        """Return the solve with a number for ``rtol="auto"``; self where it has one.

        Args:
            z0: start, under the autocast of the solve.
            *dtypes: of the leaves of the state, where there are several.
        """
        if self.stop.rtol != "auto":
            return self
        check_start(z0)
        computed = evaluated_dtype(z0)
        made = _RESOLVED.get((id(self), computed, *dtypes))
        if made is None:
            made = copy.copy(self)  # checked before, and to check all again costs as much as an evaluation of a small f
            object.__setattr__(made, "stop", self.stop.resolve(computed, *dtypes))
            _RESOLVED.keep((self,), made, computed, *dtypes)
        return made


_RESOLVED: Kept[Any] = Kept()
