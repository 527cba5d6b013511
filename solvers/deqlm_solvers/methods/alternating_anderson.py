"""Anderson mixing every few steps, plain damped steps between."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deqlm_solvers.core.checks import number, whole
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, register_solver
from deqlm_solvers.loop.step_solver import StepSolver
from deqlm_solvers.methods.anderson import Anderson
from deqlm_solvers.methods.secant import Secant, SecantState

__all__ = ["AlternatingAnderson"]


@register_solver("alternating_anderson", "aaa")
@options
class AlternatingAnderson(Secant):
    """Alternating Anderson (aAA): ``period`` - 1 damped Picard steps, then one Anderson step, and so on.

    The plain steps damp what converges by itself and give the mixing pairs that point in more directions, so on maps
    that contract slowly a short history goes as far as a long one does elsewhere. On maps that expand, where plain
    steps lead away, `Anderson` is the better choice. State (B, N), any floating dtype; small systems in float64.

    Args:
        memory: points (z, f(z)) that are mixed, >= 2; the history takes 2 (memory - 1) states. More points than N + 1
            or ``max_iter`` are not kept.
        period: an Anderson step every so many steps, >= 1; 1 mixes always.
        damping: beta in (0, 1] of both kinds of steps.
        ridge: as for `Anderson`.

    Raises:
        ValueError: an option outside its range.

    Reference:
        P. P. Pratapa, P. Suryanarayana, J. E. Pask (2016), Anderson acceleration of the Jacobi iterative method, J.
        Comput. Phys. 306 (alternating Anderson-Jacobi); A. S. Banerjee, P. Suryanarayana, J. E. Pask (2016), Periodic
        Pulay method for robust and efficient convergence acceleration of self-consistent field iterations, Chem. Phys.
        Lett. 647. Deviates: the Gram matrix, window and safeguard of `Anderson` and `Secant`.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import AlternatingAnderson, Solve, Stop
        >>> sol = Solve(AlternatingAnderson(), Stop(rtol=1e-6))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.7391
    """

    memory: int = 6
    period: int = 3
    damping: float = 1.0
    ridge: float | None = None

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "lean"}

    def __post_init__(self) -> None:
        whole("memory", self.memory, 2)
        whole("period", self.period, 1)
        number("damping", self.damping, "in (0, 1]", lambda d: 0 < d <= 1)
        if self.ridge is not None:
            number("ridge", self.ridge, "in [0, 1), or None", lambda r: 0 <= r < 1)

    def fitted(self, unknowns: int, max_iter: int) -> StepSolver:
        most = max(1, min(unknowns, max_iter))
        return self if self.pairs_kept() <= most else self.replace(memory=most + 1)

    def pairs_kept(self) -> int:
        return self.memory - 1

    def initial_damping(self) -> float:
        return self.damping

    def product_names(self) -> tuple[str, ...]:
        return ("yy",)

    weights = Anderson.weights  # type: ignore[assignment]

    def _advance(
        self, at: Evaluation, norm: Tensor, sound: Tensor, state: SecantState, held: Tensor | None = None
    ) -> Tensor:
        mixed = super()._advance(at, norm, sound, state, held)
        if (state.taken + 1) % self.period == 0:
            return mixed
        return state.base_z + state.damping.beta * state.base_r
