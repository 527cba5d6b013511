"""Anderson acceleration, type I."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deqlm_solvers.core.checks import number, whole
from deqlm_solvers.core.norms import lengths
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import register_solver
from deqlm_solvers.linalg.small_systems import push_column, solve_general
from deqlm_solvers.loop.step_solver import StepSolver
from deqlm_solvers.methods.secant import Pairs, Secant

__all__ = ["AndersonTypeI"]


@register_solver("anderson_type1")
@options
class AndersonTypeI(Secant):
    """Anderson acceleration that fits the Jacobian and not its inverse: multisecant Broyden, all equations at once.

    Where type II (`Anderson`) makes the mixed residual smallest, type I makes it orthogonal to the changes of z. On a
    symmetric map it is a Galerkin method as conjugate gradients are, type II one of minimal residuals as GMRES is: the
    residual of type I may grow on the way, and it stands maps that change by kinks better. State (B, N), any floating
    dtype; small systems in float64.

    Args:
        memory: secant pairs kept, >= 1; the history takes 2 memory states. More than N or ``max_iter`` are not kept.
        damping: beta in (0, 1], the inverse Jacobian of z - f(z) where no pair tells more.

    Raises:
        ValueError: an option outside its range.

    Reference:
        H.-R. Fang, Y. Saad (2009), Two classes of multisecant methods for nonlinear acceleration, Numer. Linear
        Algebra Appl. 16, section 2.4 (type I); J. Zhang, B. O'Donoghue, S. Boyd (2020), Globally convergent type-I
        Anderson acceleration for nonsmooth fixed-point iterations, SIAM J. Optim. 30, equation (2.8). Deviates: the
        safeguard of `Secant`, with a loose limit as for `Broyden`, in place of their regularisation and restarts.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import AndersonTypeI, Solve, Stop
        >>> sol = Solve(AndersonTypeI(), Stop(rtol=1e-6))(lambda z: 1 - 2 * z, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.3333
    """

    memory: int = 8
    damping: float = 1.0

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "lean"}

    GROWTH: ClassVar[float] = 1e6

    def __post_init__(self) -> None:
        whole("memory", self.memory, 1)
        number("damping", self.damping, "in (0, 1]", lambda d: 0 < d <= 1)

    def fitted(self, unknowns: int, max_iter: int) -> StepSolver:
        most = max(1, min(unknowns, max_iter))
        return self if self.memory <= most else self.replace(memory=most)

    def pairs_kept(self) -> int:
        return self.memory

    def initial_damping(self) -> float:
        return self.damping

    def product_names(self) -> tuple[str, ...]:
        return ("sy",)

    def weights(self, products: dict[str, Tensor], pairs: Pairs, r: Tensor, damping: Tensor) -> Tensor:
        """Return gamma of S^T (r - Y gamma) = 0, by age, (B, M)."""
        sy = products["sy"] = push_column(products["sy"], pairs.products(pairs.s, pairs.new_y))
        sy[:, 0] = pairs.products(pairs.y, pairs.new_s)
        squares = lengths(pairs.s).square()[:, pairs.by_age]
        unused = pairs.unused(squares)
        scale = squares.rsqrt().masked_fill(unused, 0.0)
        scaled = sy * (scale[:, :, None] * scale[:, None])
        scaled.diagonal(dim1=1, dim2=2).add_(unused)
        return solve_general(scaled, pairs.products(pairs.s, r) * scale) * scale
