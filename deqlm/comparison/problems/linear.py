"""Linear maps z A^T + b, whose spectra are given and whose answers are a dense solve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from deqlm.comparison.problem import TensorProblem, register_problem
from deqlm.comparison.settings import Settings
from deqlm_solvers import options
from deqlm_solvers.core.checks import number, require, whole

__all__ = ["HardRow", "NonNormal", "Rotation", "Symmetric"]


class Linear(TensorProblem):
    """f(z) = A z + b with one matrix for all rows, or with one gain per row."""

    def start(self, p: dict[str, Tensor], rows: int) -> Tensor:
        return torch.zeros_like(p["b"])

    def apply(self, z: Tensor, p: dict[str, Tensor]) -> Tensor:
        return torch.addmm(p["b"], z, p["A"].mT)

    def answer(self, p: dict[str, Tensor]) -> Tensor | None:
        A = p["A"]
        eye = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
        return torch.linalg.solve(eye - A, p["b"].mT).mT


class Slow(Linear):
    """A linear map whose spectral radius is an option; near 1 it may use more evaluations."""

    rho: float
    slow_budget: ClassVar[int] = 1000
    telling: ClassVar[tuple[str, ...]] = ("rho",)

    def budget(self, settings: Settings) -> int:
        return self.slow_budget if self.rho >= 0.95 else super().budget(settings)


@register_problem("symmetric")
@options
class Symmetric(Slow):
    """Symmetric linear map, eigenvalues spread evenly over [-rho, rho].

    Args:
        rho: spectral radius, in (0, 1).
        unknowns: N, >= 2.
    """

    rho: float = 0.9
    unknowns: int = 64

    def __post_init__(self) -> None:
        _check(self.rho, self.unknowns)

    def tensors(self, draw: Callable[..., Tensor], rows: int) -> dict[str, Tensor]:
        basis, _ = torch.linalg.qr(draw(self.unknowns, self.unknowns))
        spectrum = torch.linspace(-self.rho, self.rho, self.unknowns, dtype=torch.float64, device="cpu")
        return {"A": basis * spectrum @ basis.mT, "b": draw(rows, self.unknowns)}


@register_problem("nonnormal")
@options
class NonNormal(Slow):
    """Non-normal linear map of spectral radius rho: its powers grow before they fall.

    Args:
        rho: spectral radius, in (0, 1).
        unknowns: N, >= 2.
    """

    rho: float = 0.9
    unknowns: int = 64

    def __post_init__(self) -> None:
        _check(self.rho, self.unknowns)

    def tensors(self, draw: Callable[..., Tensor], rows: int) -> dict[str, Tensor]:
        n = self.unknowns
        A = draw(n, n) + 2 * torch.triu(draw(n, n), 1)
        radius = torch.linalg.eigvals(A).abs().max()
        return {"A": A * (self.rho / radius), "b": draw(rows, n)}


@register_problem("rotation")
@options
class Rotation(Linear):
    """Rotation of pairs by 60 degrees, stretched by a radius; above 1 plain iteration spirals out.

    Args:
        radius: modulus of every eigenvalue, > 0.
        unknowns: N, even.
    """

    radius: float = 1.1
    unknowns: int = 64

    def __post_init__(self) -> None:
        number("radius", self.radius, "> 0", lambda radius: radius > 0)
        whole("unknowns", self.unknowns, 2)
        require(self.unknowns % 2 == 0, "unknowns", self.unknowns, "even and >= 2")

    def tensors(self, draw: Callable[..., Tensor], rows: int) -> dict[str, Tensor]:
        c, s = math.cos(math.pi / 3), math.sin(math.pi / 3)
        turn = self.radius * torch.tensor([[c, -s], [s, c]], dtype=torch.float64, device="cpu")
        return {"A": torch.block_diag(*[turn] * (self.unknowns // 2)), "b": draw(rows, self.unknowns)}


@register_problem("hard_row")
@options
class HardRow(Linear):
    """One hard row among easy ones: symmetric maps of radius .5, and one row of radius rho.

    Args:
        rho: spectral radius of the hard row, in (0, 1).
        unknowns: N, >= 2.
    """

    rho: float = 0.998
    unknowns: int = 64

    max_iter: ClassVar[int] = 1000
    max_iter_double: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        _check(self.rho, self.unknowns)

    def tensors(self, draw: Callable[..., Tensor], rows: int) -> dict[str, Tensor]:
        square = draw(self.unknowns, self.unknowns)
        A = square + square.mT
        gain = torch.full((rows, 1), 0.5, dtype=torch.float64, device="cpu")
        gain[min(7, rows - 1)] = self.rho
        return {"A": A / torch.linalg.eigvalsh(A).abs().max(), "gain": gain, "b": draw(rows, self.unknowns)}

    def apply(self, z: Tensor, p: dict[str, Tensor]) -> Tensor:
        return torch.addmm(p["b"], z * p["gain"], p["A"].mT)

    def answer(self, p: dict[str, Tensor]) -> Tensor | None:
        A = p["A"]
        eye = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
        return torch.linalg.solve(eye - p["gain"][:, :, None] * A, p["b"][:, :, None])[..., 0]


def _check(rho: float, unknowns: int) -> None:
    number("rho", rho, "in (0, 1)", lambda rho: 0 < rho < 1)
    whole("unknowns", unknowns, 2)
