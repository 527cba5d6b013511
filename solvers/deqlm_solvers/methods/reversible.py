"""A damped iteration that can be run backwards."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deqlm_solvers.core.checks import number
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, Map, register_solver
from deqlm_solvers.loop.step_solver import StepSolver

__all__ = ["ReversibleIteration"]


@register_solver("reversible")
@options
class ReversibleIteration(StepSolver):
    """Damped iteration that can be run backwards: z_(k+1) = (1 - beta) z_(k-1) + beta f(z_k).

    It is that of two states, each of which steps towards f of the other. Every step can be undone, z_(k-1) = (z_(k+1) -
    beta f(z_k)) / (1 - beta), so that `deqlm.Reversible` differentiates the iteration without storing it. On a
    contraction it converges as a damped iteration does, with the factor of the larger root of x^2 - beta q x -
    (1 - beta) where Picard steps have q: .93 for .9 and beta .8. Undoing a step multiplies what rounding has done by
    1 / (1 - beta), so a small beta goes back further and a large one converges faster. State (B, N), any floating
    dtype.

    Args:
        beta: relaxation, in (0, 1).

    Raises:
        ValueError: a beta outside (0, 1).

    Reference:
        S. McCallum, K. Arora, J. Foster (2025), Reversible deep equilibrium models (their y_n and z_n are our even and
        odd points). Deviates: both states begin at the start.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import ReversibleIteration, Solve, Stop
        >>> sol = Solve(ReversibleIteration(), Stop(rtol=1e-5))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 3)
        0.739
    """

    beta: float = 0.8

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "lean", "differentiable"}
    steps_evaluate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        number("beta", self.beta, "in (0, 1)", lambda b: 0 < b < 1)

    def init(self, z: Tensor) -> Tensor:
        """Return the point before the first one."""
        return z

    def step(self, f: Map, at: Evaluation, state: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - self.beta) * state + self.beta * at.fz, at.z
