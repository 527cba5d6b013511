"""The one-step gradient."""

from __future__ import annotations

from torch import Tensor

from deqlm.gradients.base import Steps, register_gradient
from deqlm.wrap.left_behind import left_by
from deqlm.wrap.rows import RowMap
from deqlm_solvers import Adjoint, Map, Stop, options
from deqlm_solvers.core.checks import require

__all__ = ["OneStep"]


@register_gradient("one_step")
@options
class OneStep(Steps):
    """Differentiate one evaluation of f at the solved point and stop there: the cheapest gradient, biased.

    The output is f(z), so its gradient lacks the factor (I - J^T)^-1: right in direction where f contracts strongly.
    A tensor that the layer leaves somewhere, such as an auxiliary loss, is that of one more evaluation, at the output,
    and its gradient is biased like that of the output.

    Without grad the output is the solver's point: for a budget of K evaluations z_K there and f(z_K) here, for a
    converged solve the same within tolerance.

    Args:
        same_value: take the step without grad too, so that both values are equal; one more evaluation, and the reported
            residual is that of the point before.

    Raises:
        ValueError: an option outside its range.

    Reference:
        S. W. Fung et al. (2022), JFB: Jacobian-free backpropagation for implicit networks, AAAI.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Linear(3, 3), gradient="one_step", on_failure="ignore")
        >>> deq(torch.ones(2, 3)).sum().backward()
    """

    same_value: bool = False

    def __post_init__(self) -> None:
        require(isinstance(self.same_value, bool), "same_value", self.same_value, "True or False")

    def truncation(self) -> tuple[int, float]:
        return 1, 1.0

    def graphs(self, stop: Stop) -> int:
        return 1

    def connect(self, f: Map, z: Tensor, adjoint: Adjoint) -> Tensor:
        owner = f.owner if isinstance(f, RowMap) else None
        before = left_by(owner)
        y = f(z)
        if y.requires_grad and any(all(t is not old for old in before) for t in left_by(owner)):
            f(y)  # what it leaves is tied to y now, and not to a point without a graph
        return y
