"""Powell's dogleg: Newton's method within a radius, for few unknowns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.norms import lengths
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, register_solver
from deqlm_solvers.linalg.small_systems import solve_general
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.methods.dense import DenseSolver

__all__ = ["Dogleg"]

LEAST_GAIN = 1e-4
"""Share of the decrease of ||r||^2 predicted by the linear model, below which a trial point is refused."""
POOR_GAIN, GOOD_GAIN = 0.02, 0.9
"""Below the one the radius is half of the step, a tenth where f is not finite; from the other on twice the step."""


@register_solver("dogleg")
@options
class Dogleg(DenseSolver):
    """Newton's method on f(z) - z within a trust region of every row, for up to about 128 unknowns.

    For maps on which Newton's direction is right but leads too far, such as curved valleys, where a search along that
    direction ends: with the radius the step turns towards the steepest descent of ||r||, so that it descends wherever
    ||r|| can be lowered at all, also where I - J is singular. ||r|| never grows. A row in a minimum of ||r|| that is no
    solution stays there. State (B, N), any floating dtype; algebra in float64.

    The step is Newton's where that fits into the radius, else the point at which the path from here over the minimum of
    the model along its gradient to Newton's point leaves the radius. The first radius is the length of Newton's first
    step. A trial that is refused costs a point too, and is followed by a shorter step from where the row was; see
    `Newton` for what points cost, and for ``jacobian``.

    Args:
        jacobian: the Jacobian of f, (B, N) -> (B, N, N), as for `Newton`; None takes it from autograd.

    Raises:
        TypeError: ``jacobian`` is no function, or `to_dict` with one, which has no plain form.
        ValueError: in a solve, a ``max_iter`` that cannot pay one step.
        NoDerivativeError: in a solve, autograd cannot differentiate f and no ``jacobian`` is given.

    Reference:
        M. J. D. Powell (1970), A hybrid method for nonlinear equations, in P. Rabinowitz (ed.), Numerical methods for
        nonlinear algebraic equations; J. Nocedal, S. J. Wright (2006), Numerical optimization, procedure 11.6 (the
        path, equation 11.46 its bend) and algorithm 11.5 (ratio 11.47, radius). Deviates: the radius is halved below a
        ratio of .02 and doubled from .9 on, instead of 1/4 and 3/4, because a refused trial costs as much as any point.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Dogleg, Solve, Stop
        >>> rosenbrock = lambda x: torch.stack((1 - x[:, 0], 10 * (x[:, 1] - x[:, 0] ** 2)), 1)
        >>> sol = Solve(Dogleg(), Stop(rtol=1e-6))(lambda z: z - rosenbrock(z), torch.tensor([[-1.2, 1.0]]))
        >>> [round(x, 4) for x in sol.z[0].tolist()]
        [1.0, 1.0]
    """

    def vector_bytes(self, size: int) -> int:
        return 8 * size + 12 * 8

    asks_host: ClassVar[bool] = True

    def init(self, z: Tensor) -> DoglegState:
        column = torch.zeros(z.shape[0], 1, dtype=torch.float64, device=z.device)
        blank = torch.zeros_like(z, dtype=torch.float64)
        return DoglegState(
            base_z=z,
            base_norm=column + torch.inf,
            unit_r=blank,
            newton=Direction(blank, blank),
            cauchy=Direction(blank, blank),
            radius=column + torch.inf,
            length=column,
            linear=column,
            first=torch.ones_like(column, dtype=torch.bool),
        )

    def final(self, state: DoglegState) -> Tensor:
        return state.first[:, 0]

    def asks(self, at: Evaluation, state: DoglegState) -> Tensor:
        state.seen = self._look(at, state)
        return state.seen[1].any()

    def step(self, f: Evaluator, at: Evaluation, state: DoglegState) -> tuple[Tensor, DoglegState]:  # type: ignore[override]
        norm, turns, first = self._look(at, state) if state.seen is None else state.seen
        state.seen = None
        if getattr(f, "wanted", None) is not False:
            self._turn(f, at, turns, norm, first, state)
        return state.base_z + self._advance(state).to(at.z.dtype), state

    def _look(self, at: Evaluation, state: DoglegState) -> tuple[Tensor, Tensor, Tensor]:
        """Take up the point where it is accepted; return ||r||, which rows turn, which have made no step, (B, 1)."""
        norm = _norm(at.r)
        accepted = self._judge(norm, state)
        # a row that is done is held where it is and needs no new direction
        turns = accepted & (state.first | (at.z != state.base_z).any(1, keepdim=True))
        state.base_z = torch.where(turns, at.z, state.base_z)
        state.base_norm = torch.where(turns, norm, state.base_norm)
        first, state.first = state.first, torch.zeros_like(turns)
        return norm, turns, first

    def _judge(self, norm: Tensor, state: DoglegState) -> Tensor:
        """Return the rows (B, 1) that accept their trial point, and change the radii by what it brought."""
        growth = norm / state.base_norm
        gain = (1 - growth.square()) / (1 - state.linear.square())
        shorter = torch.where(growth.isfinite(), 0.5 * state.length, 0.1 * state.length)
        longer = torch.maximum(state.radius, 2 * state.length)
        radius = torch.where(gain >= POOR_GAIN, torch.where(gain >= GOOD_GAIN, longer, state.radius), shorter)
        state.radius = torch.where(state.first, state.radius, radius)
        return state.first | (gain >= LEAST_GAIN)

    def _turn(
        self, f: Evaluator, at: Evaluation, turns: Tensor, norm: Tensor, first: Tensor, state: DoglegState
    ) -> None:
        """Give rows ``turns`` (B, 1) the two directions of their new point; all are those of a residual of length 1."""
        system = self.system(f, at)
        unit_r = at.r.double() / torch.where(norm > 0, norm, 1.0)
        downhill = (system * unit_r[:, :, None]).sum(1)
        slope = _norm(downhill)
        downhill = downhill / torch.where(slope > 0, slope, 1.0)
        cauchy = Direction(downhill, (system * downhill[:, None]).sum(2))
        cauchy = cauchy.scaled(slope / _norm(cauchy.image).square())
        step = solve_general(system, unit_r)
        newton = Direction(step, (system * step[:, None]).sum(2))
        # where I - J is singular the path ends at its bend
        newton = newton.or_else(cauchy, _norm(unit_r - newton.image) < 0.5)
        state.unit_r = torch.where(turns, unit_r, state.unit_r)
        state.newton, state.cauchy = newton.or_else(state.newton, turns), cauchy.or_else(state.cauchy, turns)
        state.radius = torch.where(turns & first, norm * _norm(newton.step), state.radius)

    def _advance(self, state: DoglegState) -> Tensor:
        """Return the steps (B, N) float64 to where the paths leave the radii, and note what they should bring."""
        newton, cauchy = state.newton, state.cauchy
        radius = state.radius / torch.where(state.base_norm > 0, state.base_norm, 1.0)
        bend, turn = _norm(cauchy.step), newton.step - cauchy.step
        slope, square = (cauchy.step * turn).sum(1, keepdim=True), turn.square().sum(1, keepdim=True)
        room = radius.square() - bend.square()
        root = (slope.square() + square * room).clamp_min(0).sqrt()
        # the root of |cauchy + t turn| = radius in the form that does not cancel
        beyond = torch.where(slope > 0, room / (slope + root), (root - slope) / square).nan_to_num(0.0).clamp(0, 1)
        beyond = torch.where(_norm(newton.step) <= radius, 1.0, torch.where(bend < radius, beyond, 0.0))
        along = torch.where(beyond > 0, 1 - beyond, (radius / bend).nan_to_num(0.0).clamp(0, 1))
        step = along * cauchy.step + beyond * newton.step
        state.linear = _norm(state.unit_r - along * cauchy.image - beyond * newton.image)
        step = state.base_norm * step
        state.length = _norm(step)
        return torch.where(step.isfinite(), step, 0.0)


@dataclass
class Direction:
    """A step per row, (B, N) float64, and its product with I - J."""

    step: Tensor
    image: Tensor

    def scaled(self, factor: Tensor) -> Direction:
        """Return ``factor`` (B, 1) times the step; no step where the factor is not finite."""
        factor = torch.where(factor.isfinite(), factor, 0.0)
        return Direction(factor * self.step, factor * self.image)

    def or_else(self, other: Direction, which: Tensor) -> Direction:
        """Return self in rows ``which`` (B, 1), elsewhere ``other``."""
        return Direction(torch.where(which, self.step, other.step), torch.where(which, self.image, other.image))


@dataclass
class DoglegState:
    """State of a dogleg solve; one entry per row, columns (B, 1) float64.

    Attributes:
        base_z, base_norm: the point that the row is at, (B, N), and its ||r||.
        unit_r: its residual divided by ||r||, (B, N) float64.
        newton, cauchy: the end of the path and its bend, for the residual of length 1.
        radius, length: the largest step, and the length of the pending one.
        linear: ||r|| at its end by the linear model, divided by that at its start.
        first: no point has been seen yet, bool.
        seen: of the evaluation at hand, where it has been looked at: ||r||, rows that turn, rows without a step.
    """

    base_z: Tensor
    base_norm: Tensor
    unit_r: Tensor
    newton: Direction
    cauchy: Direction
    radius: Tensor
    length: Tensor
    linear: Tensor
    first: Tensor
    seen: tuple[Tensor, Tensor, Tensor] | None = None


def _norm(t: Tensor) -> Tensor:
    return lengths(t)[:, None]
