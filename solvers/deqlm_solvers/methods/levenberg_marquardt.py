"""Levenberg-Marquardt: Newton's method bent towards the steepest descent as far as it must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.checks import number
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, register_solver
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.linalg.small_systems import solve_general
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.methods.dense import DenseSolver

__all__ = ["LevenbergMarquardt"]

LEAST_GAIN, POOR_GAIN, GOOD_GAIN = 1e-4, 0.25, 0.75
"""Shares of the decrease of ||r||^2 that the linear model promises: refused below the first, see `_judge`."""
SMALLEST, LARGEST = 1e-16, 1e16


@register_solver("levenberg_marquardt")
@options
class LevenbergMarquardt(DenseSolver):
    """Minimise ||f(z) - z|| per row by damped least-squares steps, for up to about 128 unknowns.

    As `Dogleg` it descends wherever ||r|| can be lowered, also where I - J is singular, along a whole curve between
    Newton's step and the gradient and not along two pieces of it; near a singular solution, where a few directions are
    badly told, it is the steadier one. ||r|| never grows; a row in a minimum of ||r|| that is no solution stays there.
    A trial that is refused costs a point and is followed by a shorter step with the same Jacobian. State (B, N), any
    floating dtype; algebra in float64. See `Newton` for what points cost, and for ``jacobian``.

    Args:
        jacobian: the Jacobian of f, (B, N) -> (B, N, N), as for `Newton`; None takes it from autograd.
        mu: first damping, > 0, relative to the mean square of a column of I - J.

    Raises:
        TypeError: ``jacobian`` is no function, or `to_dict` with one, which has no plain form.
        ValueError: an option outside its range; in a solve, a ``max_iter`` that cannot pay one step.
        NoDerivativeError: in a solve, autograd cannot differentiate f and no ``jacobian`` is given.

    Reference:
        K. Levenberg (1944), D. W. Marquardt (1963); J. Fan (2003), A modified Levenberg-Marquardt algorithm for
        singular system of nonlinear equations, J. Comput. Math. 21 (damping mu ||r||, quadratic also at singular
        solutions, mu by the ratio of decreases). Deviates: mu ||r|| / ||r_0|| and relative to I - J, so that no unit
        matters; steps by LU of the augmented system, whose condition is that of I - J and not its square.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import LevenbergMarquardt, Solve, Stop
        >>> rosenbrock = lambda x: torch.stack((1 - x[:, 0], 10 * (x[:, 1] - x[:, 0] ** 2)), 1)
        >>> sol = Solve(LevenbergMarquardt(), Stop(rtol=1e-6))(lambda z: z - rosenbrock(z), torch.tensor([[-1.2, 1.0]]))
        >>> [round(x, 4) for x in sol.z[0].tolist()]
        [1.0, 1.0]
    """

    mu: float = 0.01

    asks_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        number("mu", self.mu, "> 0", lambda m: m > 0)

    def peak_bytes(self, rows: int, unknowns: int, dtype: torch.dtype, stop: Stop) -> int | None:
        return None

    def vector_bytes(self, size: int) -> int:
        return 0

    def init(self, z: Tensor) -> LevenbergMarquardtState:
        rows, unknowns = z.shape
        column = torch.zeros(rows, 1, dtype=torch.float64, device=z.device)
        return LevenbergMarquardtState(
            base_z=z,
            base_norm=column + torch.inf,
            unit_r=torch.zeros_like(z, dtype=torch.float64),
            system=z.new_zeros(rows, unknowns, unknowns, dtype=torch.float64),
            mu=column + self.mu,
            linear=column,
            first_norm=column + torch.inf,
            first=torch.ones_like(column, dtype=torch.bool),
        )

    def final(self, state: LevenbergMarquardtState) -> Tensor:
        return state.first[:, 0]

    def asks(self, at: Evaluation, state: LevenbergMarquardtState) -> Tensor:
        state.seen = self._look(at, state)
        return state.seen[1].any()

    def step(  # type: ignore[override]
        self, f: Evaluator, at: Evaluation, state: LevenbergMarquardtState
    ) -> tuple[Tensor, LevenbergMarquardtState]:
        norm, turns = self._look(at, state) if state.seen is None else state.seen
        state.seen = None
        if getattr(f, "wanted", None) is not False:
            state.system = torch.where(turns[..., None], self.system(f, at), state.system)
            unit_r = at.r.double() / torch.where(norm > 0, norm, 1.0)
            state.unit_r = torch.where(turns, unit_r, state.unit_r)
        return state.base_z + self._direction(state).to(at.z.dtype), state

    def _look(self, at: Evaluation, state: LevenbergMarquardtState) -> tuple[Tensor, Tensor]:
        """Take up the point where it is accepted; return ||r||, and which rows need a new direction, (B, 1)."""
        norm = row_norms(at.r)[:, None]
        accepted = self._judge(norm, state)
        # a row that is done is held where it is and needs no new direction
        turns = accepted & (state.first | (at.z != state.base_z).any(1, keepdim=True))
        state.first_norm = torch.where(state.first, norm, state.first_norm)
        state.base_z = torch.where(turns, at.z, state.base_z)
        state.base_norm = torch.where(turns, norm, state.base_norm)
        state.first = torch.zeros_like(turns)
        return norm, turns

    def _judge(self, norm: Tensor, state: LevenbergMarquardtState) -> Tensor:
        """Return the rows (B, 1) that accept their trial point, and change mu by what it brought."""
        growth = norm / state.base_norm
        gain = (1 - growth.square()) / (1 - state.linear.square())
        factor = torch.where(gain >= POOR_GAIN, torch.where(gain >= GOOD_GAIN, 0.25, 1.0), 4.0)
        # far from what the model holds for, a few refused points should do
        factor = torch.where(growth <= 10, factor, 16.0)
        state.mu = torch.where(state.first, state.mu, (factor * state.mu).clamp(SMALLEST, LARGEST))
        return state.first | (gain >= LEAST_GAIN)

    def _direction(self, state: LevenbergMarquardtState) -> Tensor:
        """Return the steps (B, N) float64 that minimise ||r - A s||^2 + damping ||s||^2; note what they should bring.

        With u = r - A s the equations are u + A s = r and A^T u = damping s.
        """
        system, rows, unknowns = state.system, *state.unit_r.shape
        mean_square = system.square().sum((1, 2))[:, None] / max(1, unknowns)
        progress = state.base_norm / torch.where(state.first_norm > 0, state.first_norm, 1.0)
        damping = state.mu * mean_square * progress
        eye = torch.eye(unknowns, dtype=torch.float64, device=system.device).expand(rows, -1, -1)
        upper = torch.cat((eye, system), 2)
        lower = torch.cat((system.transpose(1, 2), -damping[..., None] * eye), 2)
        solved = solve_general(torch.cat((upper, lower), 1), torch.cat((state.unit_r, 0 * state.unit_r), 1))
        step = solved[:, unknowns:]
        state.linear = row_norms(state.unit_r - (system * step[:, None]).sum(2))[:, None]
        step = state.base_norm * step
        return torch.where(step.isfinite(), step, 0.0)


@dataclass
class LevenbergMarquardtState:
    """State of a solve; one entry per row, columns (B, 1) float64.

    Attributes:
        base_z, base_norm: the point that the row is at, (B, N), and its ||r||.
        unit_r: its residual divided by ||r||, (B, N) float64.
        system: I - J there, (B, N, N) float64.
        mu: damping.
        linear: ||r|| at the end of the pending step by the linear model, divided by that at its start.
        first_norm: ||r_0||.
        first: no point has been seen yet, bool.
        seen: of the evaluation at hand, where it has been looked at: ||r||, and rows that turn.
    """

    base_z: Tensor
    base_norm: Tensor
    unit_r: Tensor
    system: Tensor
    mu: Tensor
    linear: Tensor
    first_norm: Tensor
    first: Tensor
    seen: tuple[Tensor, Tensor] | None = None
