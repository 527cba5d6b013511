"""The phantom gradient: a few damped steps through autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deqlm.gradients.base import Steps, register_gradient
from deqlm.gradients.transformable import Point
from deqlm.wrap.levels import transformed
from deqlm.wrap.rows import RowMap
from deqlm_solvers import Adjoint, Map, Stop, options
from deqlm_solvers.core.checks import number, require, whole
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.norms import lengths

__all__ = ["Phantom"]


@register_gradient("phantom")
@options(kw_only=False)
class Phantom(Steps):
    """Take ``steps`` damped steps from the solved point with autograd on: cheap and robust.

    The output is the last step's point. With A = (1 - damping) I + damping J the error against the implicit gradient is
    that of a series cut after ``steps`` terms, ||(A^T)^steps|| in norm; it vanishes with more steps only if the
    spectral radius of A is below 1. `Adjoint.growth` estimates, per row, the factor from one term to the next out of
    the steps themselves (None for one step, NaN where the steps are lost in rounding).

    Args:
        steps: damped steps, >= 1.
        damping: tau in (0, 1].
        same_value: take the steps without grad too. Else the value without grad is the solver's point, and that with
            grad lies ``steps`` damped steps behind it: for a converged solve the same within tolerance, for a budget
            another one. The steps are evaluations, and the reported residual is that of the point before them.
        checkpoint: keep the points of the steps only, and evaluate f again in backward, for the memory of one step.

    Raises:
        ValueError: an option outside its range.

    Reference:
        Z. Geng et al. (2021), On training implicit models, NeurIPS (unrolled phantom gradient, damping lambda); used
        with 4 steps and damping .8 by M. Schoene et al. (2025), Implicit language models are RNNs, ICML.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Linear(3, 3), gradient=deqlm.Phantom(4, 0.8), on_failure="ignore")
        >>> deq(torch.ones(2, 3)).sum().backward()
    """

    steps: int = 4
    damping: float = 0.8
    same_value: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        number("damping", self.damping, "in (0, 1]", lambda d: 0 < d <= 1)
        require(isinstance(self.same_value, bool), "same_value", self.same_value, "True or False")
        require(isinstance(self.checkpoint, bool), "checkpoint", self.checkpoint, "True or False")

    def truncation(self) -> tuple[int, float]:
        return self.steps, self.damping

    def graphs(self, stop: Stop) -> int:
        return 1 if self.checkpoint else self.steps

    def transform(self, at: Point) -> Tensor:
        if self.checkpoint and at.differentiated:
            raise RuntimeError(
                "gradient 'phantom' with checkpoint=True cannot be transformed by torch.func, which knows no "
                "activation checkpointing; use checkpoint=False"
            )
        return super().transform(at)

    def connect(self, f: Map, z: Tensor, adjoint: Adjoint) -> Tensor:
        inner, dtype = inner_dtype(z.dtype), z.dtype
        point = z.to(inner)
        lengths = []
        again = self.checkpoint and torch.is_grad_enabled() and not transformed()
        if again and isinstance(f, RowMap):
            f.settle(z)
        for step in range(self.steps):
            state = point.to(dtype)
            image = (checkpoint(f, state, use_reentrant=False) if again else f(state)).to(inner)
            following = image if self.damping == 1 else torch.lerp(point, image, self.damping)
            if self.steps > 1 and step >= self.steps - 2:
                lengths.append(_length(following.detach() - point.detach()))
            point = following
        if self.steps > 1:
            noise = 8 * torch.finfo(dtype).eps * _length(point)
            adjoint.growth = torch.where(lengths[-2] > noise, lengths[-1] / lengths[-2], torch.nan)
        return point.to(dtype)


def _length(t: Tensor) -> Tensor:
    return lengths(t.detach())
