"""Anderson acceleration, type II."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.checks import require
from deqlm_solvers.linalg import solve_leading
from deqlm_solvers.options import options
from deqlm_solvers.secant import Pairs, Secant
from deqlm_solvers.solver import StepSolver, register_solver

__all__ = ["Anderson"]


@register_solver("anderson")
@options
class Anderson(Secant):
    """Anderson acceleration: mixes the last points so that their mixed residual is smallest.

    The default for maps nobody has looked at: as cheap in evaluations as any Krylov method on linear maps, and it finds
    fixed points of maps that expand. Each step adds one row of inner products to the history, all of it per row.
    The window adapts: going back from the newest change of the residual, it ends at the first one that depends on the
    newer ones (squared sine below 1e-4 in float32, 1e-9 in float64), so stale points do not slow a fast row down.

    Args:
        memory: points (z, f(z)) that are mixed, >= 1; 1 is damped Picard iteration. Memory of the solver is
            2 (memory - 1) states.
        damping: beta in (0, 1], weight of the mixed residual in the step.
        ridge: regularisation relative to the scaled Gram matrix (unit diagonal), >= 0; None takes 1e-6 for float32 and
            1e-12 for float64 algebra.

    Raises:
        ValueError: an option outside its range.

    Reference:
        D. G. Anderson (1965); H. F. Walker, P. Ni (2011), Anderson acceleration for fixed-point iterations, SIAM J.
        Numer. Anal. 49, equation (2.3). Deviates: Gram matrix scaled to unit diagonal with a relative ridge; the
        adaptive window, after S. Pollock, L. G. Rebholz (2023), Filtering for Anderson acceleration, SIAM J. Sci.
        Comput. 45 (angle filtering); the safeguard of `Secant`.

    Example:
        >>> import torch
        >>> from deqlm_solvers import Anderson, Solve, Stop
        >>> sol = Solve(Anderson(memory=5), Stop(rtol=1e-6))(lambda z: 1 - 2 * z, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.3333
    """

    memory: int = 12
    damping: float = 1.0
    ridge: float | None = None

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "lean"}

    def __post_init__(self) -> None:
        require(isinstance(self.memory, int) and self.memory >= 1, "memory", self.memory, "a whole number >= 1")
        require(0 < self.damping <= 1, "damping", self.damping, "in (0, 1]")
        if self.ridge is not None:
            require(0 <= self.ridge < 1, "ridge", self.ridge, "in [0, 1), or None")

    def pairs_kept(self) -> int:
        return self.memory - 1

    def initial_damping(self) -> float:
        return self.damping

    def open_algebra(self, pairs: Pairs) -> Tensor:
        """Return the Gram matrix of the residual changes, (B, M, M) float64."""
        rows, memory = pairs.birth.shape
        return torch.zeros(rows, memory, memory, dtype=torch.float64, device=pairs.y.device)

    def coefficients(self, algebra: Tensor, pairs: Pairs, slot: int, r: Tensor, damping: Tensor) -> Tensor:
        """Return gamma of min ||r - Y^T gamma||, (B, M)."""
        products = torch.bmm(pairs.y, torch.stack((pairs.y[:, slot], r), dim=2)).double()
        row, rhs = products.unbind(2)
        algebra[:, slot] = row
        algebra[:, :, slot] = row
        diagonal = algebra.diagonal(dim1=1, dim2=2)
        used = (pairs.birth >= 0) & (diagonal > 0)
        scale = torch.where(used, diagonal, 1.0).rsqrt()
        both = used[:, :, None] & used[:, None, :]
        scaled = torch.where(both, algebra * scale[:, :, None] * scale[:, None, :], 0.0)
        double = r.dtype == torch.float64
        ridge = self.ridge if self.ridge is not None else (1e-12 if double else 1e-6)
        scaled.diagonal(dim1=1, dim2=2).copy_(torch.where(used, 1.0 + ridge, 1.0))
        newest_first = pairs.newest_first()
        ordered = scaled[:, newest_first][:, :, newest_first]
        goal = torch.where(used, rhs * scale, 0.0)[:, newest_first]
        gamma = torch.empty_like(scale)
        gamma[:, newest_first] = solve_leading(ordered, goal, 1e-9 if double else 1e-4)
        return (gamma * scale).to(r.dtype)
