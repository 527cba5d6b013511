"""Newton's method with a dense Jacobian: for few unknowns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.checks import number
from deqlm_solvers.core.norms import lengths
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, register_solver
from deqlm_solvers.linalg.line_search import LineSearch
from deqlm_solvers.linalg.small_systems import solve_general
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.methods.dense import DenseSolver

__all__ = ["Newton"]


@register_solver("newton")
@options
class Newton(DenseSolver):
    """Newton's method on f(z) - z with the Jacobian of every row, for up to about 128 unknowns.

    A few steps solve what takes others dozens of evaluations, where N products with the Jacobian are affordable: rows
    are independent, so N tangents, pushed through one call of f, give the Jacobians of the whole batch. Linear systems
    are solved in float64. Every row has its own line search; a row whose I - J is singular, or whose direction does not
    descend, takes a plain damped step instead, and twice as many each time that this happens again. State (B, N), any
    floating dtype.

    Each product counts as an evaluation, so a step costs 1 + N of ``max_iter``, and 2 with ``jacobian`` given: of
    ``max_iter`` evaluations, ``1 + (max_iter - 1) // (1 + N)`` go to points, and no solve spends more.
    `Solution.steps` counts these points. Where no row needs a new Jacobian, none is made; `Cost` tells what was spent.
    The host learns of it by the read that tests for the end; with ``Stop(check_every=0)`` every point has a Jacobian.
    A budget (rtol=0, atol=0) makes as many whole steps as it can pay.

    Args:
        jacobian: the Jacobian of f, (B, N) -> (B, N, N) in the dtype of the state, entry (b, i, j) the derivative of
            f_i in z_j of row b. It sees flattened rows, also from `deqlm.solve` and `DEQ`. Counts as one product. None
            takes it from autograd; derivatives inside f need ``create_graph=True`` then.
        damping: length of a plain step, in (0, 1].

    Raises:
        TypeError: ``jacobian`` is no function, or `to_dict` with one, which has no plain form.
        ValueError: an option outside its range; in a solve, a ``max_iter`` that cannot pay one step.
        NoDerivativeError: in a solve, autograd cannot differentiate f and no ``jacobian`` is given.

    Reference:
        J. E. Dennis, R. B. Schnabel (1983), Numerical methods for unconstrained optimization and nonlinear equations,
        algorithm D6.1.1 with the line search of `deqlm_solvers.linalg.line_search`.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Newton, Solve, Stop
        >>> sol = Solve(Newton(), Stop(rtol=1e-6))(lambda z: torch.cos(3 * z), torch.zeros(1, 1))
        >>> round(sol.z.item(), 4), sol.steps.item()
        (0.39, 7)
    """

    damping: float = 0.5

    asks_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        number("damping", self.damping, "in (0, 1]", lambda t: 0 < t <= 1)

    def vector_bytes(self, size: int) -> int:
        return 12 * size

    def init(self, z: Tensor) -> NewtonState:
        return NewtonState(
            search=LineSearch(z),
            base_z=z,
            base_r=torch.zeros_like(z),
            base_norm=torch.full((z.shape[0], 1), torch.inf, dtype=torch.float64, device=z.device),
            step=torch.zeros_like(z),
            first=torch.ones(z.shape[0], 1, dtype=torch.bool, device=z.device),
        )

    def final(self, state: NewtonState) -> Tensor:
        return state.search.final()

    def asks(self, at: Evaluation, state: NewtonState) -> Tensor:
        state.seen = self._look(at, state)
        return state.seen[-1].any()

    def step(self, f: Evaluator, at: Evaluation, state: NewtonState) -> tuple[Tensor, NewtonState]:  # type: ignore[override]
        norm, accepted, given_up, turns = self._look(at, state) if state.seen is None else state.seen
        state.seen, search = None, state.search
        if getattr(f, "wanted", None) is not False:
            self._turn(f, at, turns, norm, state)
        plain = (accepted | given_up) & (search.walk > 0)
        state.step = torch.where(plain, self.damping * state.base_r, state.step)
        search.take_plain_step(plain)
        return state.base_z + (search.length * state.step).to(at.z.dtype), state

    def _look(self, at: Evaluation, state: NewtonState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take up the point where it is accepted; return ||r||, and which rows accept, give up, and turn, (B, 1)."""
        search, norm = state.search, _norm(at.r)
        accepted, given_up = search.judge(torch.ones_like(norm, dtype=torch.bool), norm)
        search.fail(given_up, state.base_norm)
        # a row that is done is held where it is and needs no new direction
        accepted &= state.first | (at.z != state.base_z).any(1, keepdim=True)
        state.first = torch.zeros_like(accepted)
        state.base_z = torch.where(accepted, at.z, state.base_z)
        state.base_r = torch.where(accepted, at.r, state.base_r)
        state.base_norm = torch.where(accepted, norm, state.base_norm)
        return norm, accepted, given_up, accepted & (search.walk <= 0)

    def _turn(self, f: Evaluator, at: Evaluation, turns: Tensor, norm: Tensor, state: NewtonState) -> None:
        """Give rows ``turns`` (B, 1) the Newton direction of their new point, where it is one."""
        system = self.system(f, at)
        # of length one, so that neither tiny nor huge states leave what the solve can hold
        rhs = at.r.double() / torch.where(norm > 0, norm, 1.0)
        unit_step = solve_general(system, rhs)
        linear = _norm(rhs - (system * unit_step[:, None]).sum(2))
        sound = linear < 0.5
        state.step = torch.where(turns & sound, (norm * unit_step).to(at.z.dtype), state.step)
        state.search.start(turns & sound, norm, linear)
        state.search.fail(turns & ~sound, norm)


@dataclass
class NewtonState:
    """State of a Newton solve; one entry per row.

    Attributes:
        search: the line searches.
        base_z, base_r, base_norm: point that the pending step starts from, its residual, (B, N), and ||r||, float64.
        step: direction, (B, N).
        first: no step has been made yet, (B, 1).
        seen: of the evaluation at hand, where it has been looked at: ||r||, and rows that accept, give up, turn.
    """

    search: LineSearch
    base_z: Tensor
    base_r: Tensor
    base_norm: Tensor
    step: Tensor
    first: Tensor
    seen: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


def _norm(t: Tensor) -> Tensor:
    return lengths(t)[:, None]
