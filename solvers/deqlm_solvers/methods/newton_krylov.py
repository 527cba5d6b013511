"""Newton's method with GMRES: for many unknowns, without a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.advice import newton_advice
from deqlm_solvers.core.checks import number, whole
from deqlm_solvers.core.norms import lengths
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, register_solver
from deqlm_solvers.core.status import Status
from deqlm_solvers.linalg.gmres import BatchedGMRES
from deqlm_solvers.linalg.line_search import LineSearch
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.loop.step_solver import StepSolver

__all__ = ["NewtonKrylov"]


@register_solver("newton_krylov")
@options
class NewtonKrylov(StepSolver):
    """Newton's method on f(z) - z whose linear systems (I - J) s = r are solved by GMRES with exact products J v.

    For hard maps: where secant methods lose their way, a Newton direction with a line search still descends. Every row
    runs on its own clock: at each evaluation it either takes one product into its own Krylov space, or tries a point
    of its own line search. Products come from autograd, two reverse passes over one recorded call of f, so f is called
    once per trial point and not once per product; forward mode takes over where an operation has no second derivative.
    An f that takes derivatives inside (the gradient of an energy) must take them with ``create_graph=True``.

    A product counts as an evaluation: ``max_iter`` bounds, per row, products and trial points together, and so do
    `Solution.steps`. `Cost.evaluations` are calls of f and `Cost.jvps` products; for one row their sum is at most
    ``max_iter``, and in a batch, where one row may try a point while another takes a product, each of them is. Where
    the host does not look, ``Stop(check_every=0)``, every evaluation brings a product, wanted or not.

    A row whose direction is of no use (singular I - J, no decrease along it) takes a plain damped step instead, and
    twice as many each time that this happens again. State (B, N), any floating dtype; small systems in float64.

    Args:
        krylov: largest dimension of a Krylov space, >= 1; memory of the solver is ``krylov + 8`` states and the graph
            of one call of f.
        restarts: further spaces for one direction, >= 0, each begun at the residual that the last one left.
        forcing: largest relative residual of a linear system, in (0, 1). Smaller ones are chosen as the solve
            converges: eta = .9 (||r|| / ||r before||)^2, kept from falling too fast by .9 eta^2 of the last one.
        damping: length of a plain step, in (0, 1].

    Raises:
        ValueError: an option outside its range.
        NoDerivativeError: in a solve, autograd cannot differentiate f.

    Reference:
        S. C. Eisenstat, H. F. Walker (1996), Choosing the forcing terms in an inexact Newton method, SIAM J. Sci.
        Comput. 17, choice 2 (equation 2.6) with its safeguard, and algorithm INB.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import NewtonKrylov, Solve, Stop
        >>> sol = Solve(NewtonKrylov(), Stop(rtol=1e-6))(lambda z: torch.cos(3 * z), torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.39
    """

    krylov: int = 40
    restarts: int = 1
    forcing: float = 0.5
    damping: float = 0.5

    guarantees: ClassVar[frozenset[str]] = frozenset({"known_answers", "rows", "check_every", "half"})
    differentiates: ClassVar[bool] = True

    asks_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("krylov", self.krylov, 1)
        whole("restarts", self.restarts, 0)
        number("forcing", self.forcing, "in (0, 1)", lambda t: 0 < t < 1)
        number("damping", self.damping, "in (0, 1]", lambda t: 0 < t <= 1)

    def advice(self, status: Status) -> str:
        return newton_advice(status) or status.hint

    def init(self, z: Tensor) -> NewtonKrylovState:
        column = torch.zeros(z.shape[0], 1, dtype=torch.float64, device=z.device)
        return NewtonKrylovState(
            space=BatchedGMRES(min(self.krylov, max(1, z.shape[1])), z),
            search=LineSearch(z),
            base_z=z,
            base_r=torch.zeros_like(z),
            base_norm=column + torch.inf,
            eta=column + self.forcing,
            step=torch.zeros_like(z),
            linear_r=torch.zeros_like(z),
            linear_norm=column,
            spaces=torch.zeros_like(column, dtype=torch.int64),
            solving=torch.zeros_like(column, dtype=torch.bool),
        )

    def final(self, state: NewtonKrylovState) -> Tensor:
        return state.search.final()

    def asks(self, at: Evaluation, state: NewtonKrylovState) -> Tensor:
        state.next = self._look(at, state)
        return state.solving.any()

    def step(self, f: Evaluator, at: Evaluation, state: NewtonKrylovState) -> tuple[Tensor, NewtonKrylovState]:  # type: ignore[override]
        z_next = self._look(at, state) if state.next is None else state.next
        state.next = None
        f.carry(None if getattr(f, "wanted", None) is False else torch.where(state.solving, state.space.newest(), 0.0))
        return z_next, state

    def _look(self, at: Evaluation, state: NewtonKrylovState) -> Tensor:
        """Take the evaluation into spaces and searches; return the next point (B, N)."""
        search, tried = state.search, ~state.solving
        if at.jv is not None:
            self._extend(at.jv, state)
        accepted, given_up = search.judge(tried, _norm(at.r))
        search.fail(given_up, state.base_norm)
        self._arrive(accepted, at, state)
        plain = ~state.solving & (search.walk > 0)
        state.step = torch.where(plain, self.damping * state.base_r, state.step)
        search.take_plain_step(plain)
        moving = state.base_z + (search.length * state.step).to(at.z.dtype)
        return torch.where(state.solving, state.base_z, moving)

    def _extend(self, jv: Tensor, state: NewtonKrylovState) -> None:
        """Take one product into the spaces of rows that solve, and end or restart those that are done."""
        space, solving = state.space, state.solving
        space.extend(solving, space.newest() - jv)
        goal = state.eta * state.base_norm
        ended = solving & ((space.estimate() <= goal) | space.exhausted)
        x, left = space.correction(state.linear_r)
        norm = _norm(left)
        kept = ended & (norm < state.linear_norm)
        again = kept & (norm > 1.1 * goal) & (norm < 0.9 * state.linear_norm) & (state.spaces < self.restarts)
        state.step = torch.where(kept, state.step + x, state.step)
        state.linear_r = torch.where(kept, left, state.linear_r)
        state.linear_norm = torch.where(kept, norm, state.linear_norm)
        state.spaces = state.spaces + again
        space.start(again, state.linear_r)
        done = ended & ~again
        state.solving = solving & ~done
        linear = state.linear_norm / state.base_norm
        descends = linear < 0.999
        state.search.start(done & descends, state.base_norm, linear)
        state.search.fail(done & ~descends, state.base_norm)

    def _arrive(self, accepted: Tensor, at: Evaluation, state: NewtonKrylovState) -> None:
        """Take up the point in rows that accept it, and begin a linear system in those that do not walk."""
        norm = _norm(at.r)
        eta = 0.9 * (norm / state.base_norm).square()
        before = 0.9 * state.eta.square()
        eta = torch.where(before > 0.1, torch.maximum(eta, before), eta).clamp(1e-4, self.forcing)
        state.eta = torch.where(accepted & eta.isfinite(), eta, state.eta)
        state.base_z = torch.where(accepted, at.z, state.base_z)
        state.base_r = torch.where(accepted, at.r, state.base_r)
        state.base_norm = torch.where(accepted, norm, state.base_norm)
        solves = accepted & (state.search.walk <= 0)
        state.step = torch.where(solves, 0.0, state.step)
        state.linear_r = torch.where(solves, at.r, state.linear_r)
        state.linear_norm = torch.where(solves, norm, state.linear_norm)
        state.spaces = state.spaces.masked_fill(solves, 0)
        state.space.start(solves, at.r)
        state.solving = state.solving | solves


@dataclass
class NewtonKrylovState:
    """State of a Newton-Krylov solve; one entry per row, columns (B, 1).

    Attributes:
        space: the Krylov spaces.
        search: the line searches.
        base_z, base_r, base_norm: the point the row is at, its residual f(z) - z, and ||r||, float64.
        eta: forcing term, float64.
        step: direction so far, (B, N).
        linear_r, linear_norm: r - (I - J) step at the start of the space, (B, N), and its norm, float64.
        spaces: restarts of this direction.
        solving: the row's next evaluation is a product; if not, a trial point.
        next: the next point, (B, N), where the evaluation at hand has been looked at.
    """

    space: BatchedGMRES
    search: LineSearch
    base_z: Tensor
    base_r: Tensor
    base_norm: Tensor
    eta: Tensor
    step: Tensor
    linear_r: Tensor
    linear_norm: Tensor
    spaces: Tensor
    solving: Tensor
    next: Tensor | None = None


def _norm(t: Tensor) -> Tensor:
    return lengths(t)[:, None]
