"""A causal chain, where information moves one position per evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from deqlm.comparison.problem import TensorProblem, register_problem
from deqlm_solvers import options
from deqlm_solvers.core.checks import whole

__all__ = ["Parity"]


@register_problem("parity")
@options
class Parity(TensorProblem):
    """Causal parity chain z_t = s_t z_(t-1): the residual stays constant for length - 1 evaluations, then it is zero.

    The first position is right from the start, and the map is exact in every dtype: all numbers are 0, 1 and -1.

    Args:
        length: positions, >= 2.
    """

    length: int = 256

    rows: ClassVar[int] = 4
    max_iter: ClassVar[int] = 400
    max_iter_double: ClassVar[int] = 400

    def __post_init__(self) -> None:
        whole("length", self.length, 2)

    def tensors(self, draw: Callable[..., Tensor], rows: int) -> dict[str, Tensor]:
        return {"s": torch.where(draw(rows, self.length) < 0, -1.0, 1.0)}

    def start(self, p: dict[str, Tensor], rows: int) -> Tensor:
        z0 = torch.zeros_like(p["s"])
        z0[:, 0] = p["s"][:, 0]
        return z0

    def apply(self, z: Tensor, p: dict[str, Tensor]) -> Tensor:
        return p["s"] * torch.nn.functional.pad(z[:, :-1], (1, 0), value=1.0)

    def tokens(self) -> int:
        return self.length

    def answer(self, p: dict[str, Tensor]) -> Tensor | None:
        return p["s"].cumprod(dim=1)
