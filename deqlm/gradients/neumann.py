"""The Neumann series of the implicit gradient, cut."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm.gradients.base import register_gradient
from deqlm.gradients.one_graph import Linearised, OneGraph
from deqlm_solvers import Adjoint, Cost, Map, options
from deqlm_solvers.core.checks import number, whole
from deqlm_solvers.core.norms import lengths

__all__ = ["Neumann"]


@register_gradient("neumann")
@options(kw_only=False)
class Neumann(OneGraph):
    """Sum the first ``terms`` terms of w = g + J^T g + J^T J^T g + ...: the phantom gradient in the memory of one step.

    The output is the solved point, and the terms are products on the graph of one evaluation there. With A =
    (1 - damping) I + damping J the sum is damping (I + A^T + ... ), and its error against the implicit gradient is
    ||(A^T)^terms|| in norm: it vanishes with more terms only if the spectral radius of A is below 1, which a solver
    that finds points of expanding maps does not see to. `Adjoint.growth` tells, per row, the factor from the last but
    one term to the last (None for one term). `Phantom` with the same numbers differentiates another point.

    Args:
        terms: of the series, >= 1; each but the first is one product with J^T.
        damping: tau in (0, 1]; less than 1 tames eigenvalues of J below -1.

    Raises:
        ValueError: an option outside its range.

    Reference:
        C. Neumann (1877); as a gradient: R. Liao et al. (2018), Reviving and improving recurrent back-propagation,
        ICML (Neumann RBP); damped: Z. Geng et al. (2021), On training implicit models, NeurIPS (Neumann-series phantom
        gradient).

    Examples:
        >>> import deqlm, torch
        >>> w = torch.tensor([[0.5]], requires_grad=True)
        >>> sol = deqlm.solve(lambda z: w * z + 1, torch.zeros(1, 1), gradient=deqlm.Neumann(4))
        >>> sol.z.sum().backward()
        >>> round(w.grad.item(), 2)  # 4 (1 - .5^4)
        3.75
    """

    terms: int = 8
    damping: float = 1.0

    def __post_init__(self) -> None:
        whole("terms", self.terms, 1)
        number("damping", self.damping, "in (0, 1]", lambda d: 0 < d <= 1)

    def reports(self) -> bool:
        return True

    def truncation(self) -> tuple[int, float]:
        return self.terms, self.damping

    def tangent(self, system: Linearised) -> Map:
        product = system.forward_product()

        def v_of(t: Tensor) -> Tensor:
            term = total = t
            for _ in range(self.terms - 1):
                term = torch.lerp(term, product(term), self.damping)
                total = total + term
            return self.damping * total

        return v_of

    def cotangent(self, f: Map, system: Linearised, adjoint: Adjoint) -> Map:
        def w_of(g: Tensor) -> Tensor:
            term = total = g
            before = None
            for _ in range(self.terms - 1):
                before, image = term, system.product(term)
                term = image if self.damping == 1 else torch.lerp(term, image, self.damping)
                total = total + term
            growth = None if before is None else _length(term) / _length(before)
            adjoint.record_terms(growth, Cost(vjps=self.terms - 1))
            return total if self.damping == 1 else self.damping * total

        return w_of


def _length(t: Tensor) -> Tensor:
    return lengths(t)
