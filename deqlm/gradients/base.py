"""The contract of a gradient method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqlm.gradients.transformable import Point
from deqlm.wrap.failures import Failures
from deqlm.wrap.rows import RowMap
from deqlm.wrap.solved_by import SolvedBy
from deqlm.wrap.sparing import spare
from deqlm_solvers import Adjoint, Layout, Map, Options, Registry, Solution, Solve, Status, Stop

__all__ = ["GRADIENTS", "Gradient", "register_gradient"]


class Gradient(Options, ABC):
    """Ties the solved point to autograd. Most methods implement `connect` and nothing else.

    Class attributes:
        exact: at a converged point the gradient is the implicit one up to tolerances; the contract suite tests it.
        keeps_point: `connect` returns the value of the solved point; if not, the reported residual is that of the
            point before.
        through_steps: the solve itself carries the graph, and `connect` cannot connect a point.

    Examples:
        >>> import torch
        >>> from deqlm import Gradient, options, register_gradient
        >>> @register_gradient("two_steps")
        ... @options
        ... class TwoSteps(Gradient):
        ...     def connect(self, f, z, adjoint):
        ...         return f(f(z))
    """

    exact: ClassVar[bool] = False
    keeps_point: ClassVar[bool] = True
    through_steps: ClassVar[bool] = False

    def check(self, solve: Solve) -> None:
        """Refuse, at construction, a solve that this method cannot differentiate.

        Raises:
            ValueError: with the reason and what would fit.
        """
        return

    def for_solve(self, solve: Solve) -> Gradient:
        """Return the method with every choice made that it leaves to the forward ``solve``."""
        return self

    def solves(self, solve: Solve) -> list[Solve]:
        """Return the solves that a backward makes after the forward ``solve``; the default is a field ``solve``."""
        own = getattr(self.for_solve(solve), "solve", None)
        return [own] if isinstance(own, Solve) else []

    def reports(self) -> bool:
        """Say whether backward fills in the `Adjoint`, and so calls ``on_backward``; the default says no."""
        return False

    def truncation(self) -> tuple[int, float] | None:
        """Return (k, tau) of a method whose error is a series cut after k terms, ((1 - tau) I + tau J^T)^k of it.

        None for methods that cut no such series.
        """
        return None

    def graphs(self, stop: Stop) -> int | None:
        """Return how many evaluations of f a call keeps in its graph, at most; None where that is unknown."""
        return None

    def plain(self, solve: Solve, f: Map, z0: Tensor, layout: Layout, failures: Failures) -> Solution:
        """Return the solution of a call without grad, from ``z0`` (B, N); the default is what `settle` makes of it."""
        return self.settle(f, solve(f, z0, layout), failures)

    def settle(self, f: Map, sol: Solution, failures: Failures) -> Solution:
        """Return the solution of a call without grad; ``sol`` is the solver's."""
        return sol

    @abstractmethod
    def connect(self, f: Map, z: Tensor, adjoint: Adjoint) -> Tensor:
        """Return (B, N) with the value of ``z`` (or close to it) whose graph carries the gradient.

        Args:
            f: the map on rows; what it captures is reached through its graph. A `RowMap` says in ``solved_by`` how the
                point was found.
            z: solved point, (B, N), without a graph.
            adjoint: report to fill in, in backward or at once.
        """

    def push_forward(self, f: RowMap, z: Tensor, adjoint: Adjoint) -> Tensor | None:
        """Return the tangent (B, N) of the solved point ``z`` in forward mode, or None where f has none there.

        Args:
            f: the map on rows, some of whose inputs, parameters or captured tensors are dual.
            z: solved point, (B, N), without a graph and without a tangent.
            adjoint: report to fill in.

        Raises:
            RuntimeError: the method has no forward mode.
        """
        raise RuntimeError(
            f"gradient {self.name!r} has no forward mode: use gradient='implicit', whose derivative is the same in "
            "both modes, or torch.autograd.grad"
        )

    def transform(self, at: Point) -> Tensor:
        """Return the solved point, (B, N) of its levels, so that the transforms of torch.func around it find it right.

        Args:
            at: the point.

        Raises:
            RuntimeError: the method cannot be transformed so.
        """
        raise RuntimeError(
            f"gradient {self.name!r} cannot be transformed by torch.func; use gradient='implicit', or torch.autograd"
        )

    def forward(self, solve: Solve, f: RowMap, z0: Tensor, layout: Layout) -> tuple[Solution, SolvedBy]:
        """Solve from ``z0`` (B, N) without a graph, and say how, for methods that learn from the evaluations."""
        return solve(f, z0, layout), SolvedBy(solve, layout)

    def attach(self, solve: Solve, f: RowMap, z0: Tensor, layout: Layout, failures: Failures) -> Solution:
        """Solve from ``z0`` (B, N) and connect the result; rows that failed are kept out of the graph."""
        sol, by = self.forward(solve, f, z0, layout)
        failures.report(sol, solve.stop)
        adjoint = failures.adjoint()
        if not self.keeps_point:
            sol = sol.replace(residual_of="previous")
        bad = failures.bad_rows(sol, solve.stop)
        spared = spare(f, sol.z, bad, layout.together)
        if spared is None:
            return sol.replace(z=nothing(f, sol.z), adjoint=adjoint)
        sound, point, source = spared
        sound.solved_by = by if source is None else by.select(source)
        z = self.connect(sound, point, adjoint)
        return sol.replace(z=z if bad is None else torch.where(bad[:, None], sol.z, z), adjoint=adjoint)


def nothing(f: Map, z: Tensor) -> Tensor:
    """Return ``z`` tied to the graph of f(z) by a zero gradient, for a batch in which every row failed."""
    return _Nothing.apply(f(z), z)  # type: ignore[no-any-return]


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fz: Tensor, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


class Steps(Gradient):
    """A method that returns a point some steps behind the solved one.

    Attributes:
        same_value: take the steps without grad too.
    """

    same_value: bool

    keeps_point: ClassVar[bool] = False

    def transform(self, at: Point) -> Tensor:
        adjoint = Adjoint()
        y = self.connect(at.f.f, at.f.given(at.z), adjoint)
        if adjoint.growth is not None:
            at.adjoint.growth = at.f.taken(adjoint.growth)
        return y

    def settle(self, f: Map, sol: Solution, failures: Failures) -> Solution:
        if not self.same_value:
            return sol
        z = self.connect(f, sol.z, failures.adjoint())
        if failures.failed_grad != "keep":
            z = torch.where((sol.status >= int(Status.DIVERGED))[:, None], sol.z, z)
        return sol.replace(z=z, residual_of="previous")


GRADIENTS: Registry[Gradient] = Registry("gradient", Gradient, "deqlm.gradients")
"""Every registered gradient method: iterate for names, index for the class."""

register_gradient = GRADIENTS.register
