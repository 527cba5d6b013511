"""Picard iteration with momentum: heavy ball and Nesterov."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from deqlm_solvers.core.checks import number, require
from deqlm_solvers.core.norms import lengths
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, Map, register_solver
from deqlm_solvers.loop.step_solver import StepSolver

__all__ = ["Momentum"]


@register_solver("momentum")
@options
class Momentum(StepSolver):
    """Plain steps that go on a little as the last one went: no history, no inner products, and a graph if wanted.

    With the spectrum of a symmetric J within [-q, q] heavy ball turns the factor q per step into about the root of
    ``momentum``, where that is near 1 - (1 - q)^(1/2): .9 becomes .7 by the default. Where J turns (complex
    eigenvalues) momentum can explode; so a row whose residual grows takes that step without and has half of its
    momentum from then on, until it is plain iteration. State (B, N), any floating dtype. Steps can be differentiated
    (`deqlm.Unrolled`), at the memory of one more state.

    Args:
        momentum: mu in [0, 1).
        damping: beta in (0, 1], of the plain part.
        kind: "heavy_ball": z <- z + beta r + mu (z - z before); "nesterov": f is evaluated at y = x + mu (x - x before)
            and x <- y + beta r(y).
        halve: rows whose residual grows lose half of their momentum; without it every step is linear in the points.

    Raises:
        ValueError: an option outside its range.

    Reference:
        B. T. Polyak (1964), Some methods of speeding up the convergence of iteration methods, USSR Comput. Math. Math.
        Phys. 4, equation (9); Y. Nesterov (1983), A method of solving a convex programming problem with convergence
        rate O(1/k^2), Soviet Math. Dokl. 27; restarts by a test: B. O'Donoghue, E. Candes (2015), Adaptive restart for
        accelerated gradient schemes, Found. Comput. Math. 15. Deviates: the residual is tested, and momentum halved.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import FixedPoint, Momentum, Solve, Stop
        >>> f, z0 = (lambda z: 0.9 * z + 1), torch.zeros(1, 1)
        >>> [Solve(s, Stop(rtol=1e-6))(f, z0).steps.item() for s in (Momentum(), FixedPoint())]
        [45, 100]
    """

    momentum: float = 0.5
    damping: float = 1.0
    kind: Literal["heavy_ball", "nesterov"] = "heavy_ball"
    halve: bool = True

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "lean", "differentiable"}
    steps_evaluate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        number("momentum", self.momentum, "in [0, 1)", lambda m: 0 <= m < 1)
        number("damping", self.damping, "in (0, 1]", lambda d: 0 < d <= 1)
        require(self.kind in ("heavy_ball", "nesterov"), "kind", self.kind, "'heavy_ball' or 'nesterov'")
        require(isinstance(self.halve, bool), "halve", self.halve, "True or False")

    def init(self, z: Tensor) -> MomentumState:
        column = torch.zeros(z.shape[0], 1, dtype=torch.float64, device=z.device)
        return MomentumState(z, column + torch.inf, (column + self.momentum).to(z.dtype))

    def step(self, f: Map, at: Evaluation, state: MomentumState) -> tuple[Tensor, MomentumState]:
        norm, keeps = state.norm, state.momentum
        if self.halve:
            norm = lengths(at.r.detach())[:, None]
            grew = norm > state.norm
            keeps = torch.where(grew, 0.5 * state.momentum, state.momentum)
            now = keeps.masked_fill(grew, 0.0)
        else:
            now = keeps
        plain = at.fz if self.damping == 1 else at.z + self.damping * at.r
        base = at.z if self.kind == "heavy_ball" else plain
        return plain + now * (base - state.before), MomentumState(base, norm, keeps)


@dataclass(frozen=True)
class MomentumState:
    """State of a solve; columns (B, 1).

    Attributes:
        before: the point before, (B, N); for Nesterov the x of the last step.
        norm: ||r|| there, float64.
        momentum: mu of the row, inner dtype.
    """

    before: Tensor
    norm: Tensor
    momentum: Tensor
