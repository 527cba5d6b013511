"""What solvers with the dense Jacobian of every row have in common: where it comes from and what it costs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.advice import newton_advice
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation, Map
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.evaluator import Evaluator, check_start
from deqlm_solvers.loop.step_solver import StepSolver

__all__ = ["DenseSolver"]


@options
class DenseSolver(StepSolver):
    """An update rule that takes the Jacobian of every row at each point that it accepts; every point costs 1 + N.

    Args:
        jacobian: see `Newton`.

    Examples:
        >>> from deqlm_solvers import Newton
        >>> Newton().price(unknowns=12), Newton(jacobian=lambda z: z).price(unknowns=12)
        (13, 2)
    """

    jacobian: Callable[[Tensor], Tensor] | None = None

    guarantees: ClassVar[frozenset[str]] = frozenset({"known_answers", "rows", "check_every", "half"})

    def __post_init__(self) -> None:
        if self.jacobian is not None and not callable(self.jacobian):
            raise TypeError(f"jacobian must be a function or None, got {type(self.jacobian).__name__}")

    def to_dict(self) -> dict[str, Any]:
        if self.jacobian is not None:
            kind = type(self).__name__
            raise TypeError(f"a {kind} with jacobian=... has no plain form, because a function is no plain data")
        return super().to_dict()

    def rehearsable(self) -> bool:
        return False

    def advice(self, status: Status) -> str:
        return newton_advice(status) or status.hint

    def peak_bytes(self, rows: int, unknowns: int, dtype: torch.dtype, stop: Stop) -> int | None:
        """Return what holds where autograd gives the Jacobian; None for a user's function.

        What the N tangents take inside f is f's.
        """
        if self.jacobian is not None:
            return None
        size, matrix = inner_dtype(dtype).itemsize, unknowns**2
        # the Jacobian, then I - J and what the batched solve makes of it, in float64; one identity for all rows
        return rows * matrix * (size + 3 * 8) + matrix * size + rows * unknowns * self.vector_bytes(size)

    @abstractmethod
    def vector_bytes(self, size: int) -> int:
        """Return the bytes of all vectors that are held, per unknown of a row; ``size`` is that of a number of f."""

    def price(self, unknowns: int) -> int:
        """Return what one point costs of ``Stop.max_iter``: its evaluation, and the products of its Jacobian."""
        return 1 + unknowns if self.jacobian is None else 2

    def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
        check_start(z0)
        price = self.price(z0.shape[1])
        what = f"two evaluations and {price - 1} products with the Jacobian, for one step of {self.name!r}"
        require(stop.max_iter > price, "max_iter", stop.max_iter, f">= {price + 1}, {what}")
        points = stop.max_iter // price if stop.is_budget else 1 + (stop.max_iter - 1) // price
        return super().solve(f, z0, stop.replace(max_iter=points), layout)

    def system(self, f: Evaluator, at: Evaluation) -> Tensor:
        """Return I - J of all rows at the point, (B, N, N) float64; made by N products, or one call of ``jacobian``.

        Unknowns that are held take no step, whatever f makes of them: their rows and columns of J are zero.
        """
        jacobian = f.jacobian(at.z, self.jacobian).double()
        if at.masked is not None:
            jacobian = jacobian.masked_fill(at.masked[:, None] | at.masked[..., None], 0.0)
        return torch.eye(at.z.shape[1], dtype=torch.float64, device=at.z.device) - jacobian
