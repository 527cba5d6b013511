"""(I - J^T)^-1 in float64: by factorising, or by iteration with the residual told."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from deqlm_solvers import Anderson, Broyden, Map, Solve, Stop

__all__ = ["Inverse", "KrylovInverse", "LUInverse", "NotSolvedError", "lengths"]

TIGHT = 1e-11
ENOUGH = 1e-8
ATTEMPTS = (
    Solve(Anderson(memory=40), Stop(max_iter=1000, rtol=0.0, atol=TIGHT)),
    Solve(Broyden(memory=80), Stop(max_iter=1000, rtol=0.0, atol=TIGHT)),
)


class NotSolvedError(ArithmeticError):
    """An adjoint system is singular, or iteration does not solve it."""


class Inverse(ABC):
    """Solves with I - J^T, row by row; vectors are (R, N) float64."""

    @abstractmethod
    def transposed(self, w: Tensor) -> Tensor:
        """Return J^T w."""

    @abstractmethod
    def solve(self, g: Tensor) -> tuple[Tensor, float]:
        """Return w of (I - J^T) w = g, and ||J^T w + g - w|| / ||g||, the largest of all rows.

        Raises:
            NotSolvedError: the system is singular or the residual is above 1e-8.
        """

    @abstractmethod
    def slowest(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return kappa = ||(I - J)^-1|| per row, (R,), from below, and the unit vectors (R, N) it stretches to."""

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """Return ||J^T w + g - w|| / ||g|| per row; zero where g is."""
        size = lengths(g)
        left = lengths(self.transposed(w) + g - w)
        return torch.where(size > 0, left / torch.where(size > 0, size, 1.0), left)


class LUInverse(Inverse):
    """Factorised; ``jacobian`` is (R, N, N)."""

    def __init__(self, jacobian: Tensor) -> None:
        self.jacobian = jacobian
        system = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device) - jacobian.mT
        self.factors, self.pivots, info = torch.linalg.lu_factor_ex(system)
        if bool(info.any()):
            raise NotSolvedError("I - J is singular at the fixed point, which has no gradient there")

    def transposed(self, w: Tensor) -> Tensor:
        return (self.jacobian.mT @ w[:, :, None])[:, :, 0]

    def solve(self, g: Tensor) -> tuple[Tensor, float]:
        w = self._solve(g, False)
        largest = self.residual(w, g).max().item() if g.numel() else 0.0
        if not largest <= ENOUGH:
            raise NotSolvedError(
                f"I - J is too near to singular: the dense solve leaves a relative residual of {largest:.1e}"
            )
        return w, largest

    def slowest(self, start: Tensor) -> tuple[Tensor, Tensor]:
        w = _unit(start)
        kappa = torch.ones_like(w[:, 0])
        for _ in range(20):
            v = _unit(self._solve(w, True))
            w = self._solve(v, False)
            kappa = lengths(w)
            w = _unit(w)
        return kappa, w

    def _solve(self, g: Tensor, adjoint: bool) -> Tensor:
        return torch.linalg.lu_solve(self.factors, self.pivots, g[:, :, None], adjoint=adjoint)[:, :, 0]


class KrylovInverse(Inverse):
    """By Anderson acceleration, which is GMRES on a linear map, and by Broyden's method where that fails."""

    def __init__(self, transposed: Map) -> None:
        self._transposed = transposed

    def transposed(self, w: Tensor) -> Tensor:
        return self._transposed(w)

    def solve(self, g: Tensor) -> tuple[Tensor, float]:
        w, left = self._best(g, TIGHT)
        largest = left.max().item() if left.numel() else 0.0
        if not largest <= ENOUGH:
            raise NotSolvedError(
                f"the adjoint system is not solved: the smallest relative residual is {largest:.1e}, "
                f"and {ENOUGH:.0e} is needed"
            )
        return w, largest

    def slowest(self, start: Tensor) -> tuple[Tensor, Tensor]:
        w = _unit(start)
        kappa = torch.ones_like(w[:, 0])
        for _ in range(2):
            w, _ = self._best(w, 1e-4)
            kappa = lengths(w)
            w = _unit(w)
        return kappa, w

    def _best(self, g: Tensor, enough: float) -> tuple[Tensor, Tensor]:
        unit, size = _unit(g), lengths(g)[:, None]
        w, left = unit, self.residual(unit, unit)
        for how in ATTEMPTS:
            if bool((left <= enough).all()):
                break
            stop = how.stop.replace(atol=enough)
            now = Solve(how.solver, stop)(lambda t: self.transposed(t) + unit, w).z
            then = self.residual(now, unit)
            better = then < left
            w, left = torch.where(better[:, None], now, w), torch.where(better, then, left)
        return w * size, left


def lengths(t: Tensor) -> Tensor:
    """Return the length of each row, (R,)."""
    return torch.linalg.vector_norm(t, dim=1)


def _unit(t: Tensor) -> Tensor:
    size = lengths(t)[:, None]
    return t / torch.where(size > 0, size, 1.0)
