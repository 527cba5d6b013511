"""The one-step gradient."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deqlm.gradients.base import Gradient, register_gradient
from deqlm_solvers import Adjoint, Map, Stop, options

__all__ = ["OneStep"]


@register_gradient("one_step")
@options
class OneStep(Gradient):
    """Differentiate one evaluation of f at the solved point and stop there: the cheapest gradient, biased.

    The output is f(z), so its gradient lacks the factor (I - J^T)^-1: right in direction where f contracts strongly.

    Reference:
        S. W. Fung et al. (2022), JFB: Jacobian-free backpropagation for implicit networks, AAAI.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Linear(3, 3), gradient="one_step", on_failure="ignore")
        >>> deq(torch.ones(2, 3)).sum().backward()
    """

    keeps_point: ClassVar[bool] = False

    def truncation(self) -> tuple[int, float]:
        return 1, 1.0

    def graphs(self, stop: Stop) -> int:
        return 1

    def connect(self, f: Map, z: Tensor, adjoint: Adjoint) -> Tensor:
        return f(z)
