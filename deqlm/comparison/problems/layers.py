"""Small nonlinear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from deqlm.comparison.problem import TensorProblem, register_problem
from deqlm.comparison.truth import bisect, polish
from deqlm_solvers import options
from deqlm_solvers.core.checks import number, whole

__all__ = ["Tanh", "TwoCycle"]


@register_problem("tanh")
@options
class Tanh(TensorProblem):
    """Tanh layer with a random weight of spectral radius rho; above 1 plain iteration may wander.

    Args:
        rho: spectral radius of the weight, > 0.
        unknowns: N, >= 2.
    """

    rho: float = 0.9
    unknowns: int = 128

    telling: ClassVar[tuple[str, ...]] = ("rho",)

    def __post_init__(self) -> None:
        number("rho", self.rho, "> 0", lambda rho: rho > 0)
        whole("unknowns", self.unknowns, 2)

    def tensors(self, draw: Callable[..., Tensor], rows: int) -> dict[str, Tensor]:
        W = draw(self.unknowns, self.unknowns)
        W = W * (self.rho / torch.linalg.eigvals(W).abs().max())
        return {"W": W, "b": draw(rows, self.unknowns)}

    def start(self, p: dict[str, Tensor], rows: int) -> Tensor:
        return torch.zeros_like(p["b"])

    def apply(self, z: Tensor, p: dict[str, Tensor]) -> Tensor:
        return torch.tanh(torch.addmm(p["b"], z, p["W"].mT))

    def answer(self, p: dict[str, Tensor]) -> Tensor | None:
        if self.rho >= 1:
            return None
        return polish(lambda z: self.apply(z, p), torch.zeros_like(p["b"]))


@register_problem("two_cycle")
@options
class TwoCycle(TensorProblem):
    """Two-cycle of tanh(b - slope z), each unknown by itself: above slope 1 plain iteration never settles.

    Args:
        slope: steepness, > 0.
        unknowns: N, >= 1.
    """

    slope: float = 1.6
    unknowns: int = 64

    bound: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        number("slope", self.slope, "> 0", lambda slope: slope > 0)
        whole("unknowns", self.unknowns, 1)

    def tensors(self, draw: Callable[..., Tensor], rows: int) -> dict[str, Tensor]:
        return {"b": draw(rows, self.unknowns)}

    def start(self, p: dict[str, Tensor], rows: int) -> Tensor:
        return torch.zeros_like(p["b"])

    def apply(self, z: Tensor, p: dict[str, Tensor]) -> Tensor:
        return torch.tanh(p["b"] - self.slope * z)

    def answer(self, p: dict[str, Tensor]) -> Tensor | None:
        limit = torch.full_like(p["b"], self.bound)
        return bisect(lambda z: self.apply(z, p) - z, -limit, limit)
