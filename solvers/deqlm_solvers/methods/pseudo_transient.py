"""Pseudo-transient continuation: implicit time steps that grow into Newton's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqlm_solvers.core.checks import number
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, register_solver
from deqlm_solvers.linalg.small_systems import solve_general
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.methods.dense import DenseSolver

__all__ = ["PseudoTransient"]


@register_solver("pseudo_transient")
@options
class PseudoTransient(DenseSolver):
    """Follow dz/dt = f(z) - z by implicit Euler steps that grow as the residual falls, for up to about 128 unknowns.

    Where Newton's direction leads astray from far away, the flow leads to a fixed point that attracts, and near it the
    steps are Newton's. It finds such points only, never one from which the flow leads away, and ||r|| may grow for a
    while: there is no line search that could end in a minimum of it. State (B, N), any floating dtype; algebra in
    float64. A point costs what one of `Newton` costs; see there, also for ``jacobian``.

    Args:
        jacobian: the Jacobian of f, (B, N) -> (B, N, N), as for `Newton`; None takes it from autograd.
        delta: first time step, > 0, where f(z) - z is 1 per unit of time; the step is then ``delta`` ||r_0|| / ||r||
            for every row. 10 is near Newton's step; .3 stays near the flow.

    Raises:
        TypeError: ``jacobian`` is no function, or `to_dict` with one, which has no plain form.
        ValueError: an option outside its range; in a solve, a ``max_iter`` that cannot pay one step.
        NoDerivativeError: in a solve, autograd cannot differentiate f and no ``jacobian`` is given.

    Reference:
        C. T. Kelley, D. E. Keyes (1998), Convergence analysis of pseudo-transient continuation, SIAM J. Numer. Anal.
        35, algorithm PTC with V = I and the step sizes of "switched evolution relaxation" (W. A. Mulder, B. van Leer,
        1985).

    Examples:
        >>> import torch
        >>> from deqlm_solvers import PseudoTransient, Solve, Stop
        >>> solver, z0 = PseudoTransient(delta=0.3), torch.full((1, 1), 0.1)
        >>> sol = Solve(solver, Stop(rtol=1e-6))(lambda z: torch.tanh(3 * z), z0)  # Newton's step leads to 0
        >>> round(sol.z.item(), 4)
        0.9949
    """

    delta: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("delta", self.delta, "> 0", lambda d: d > 0)

    def vector_bytes(self, size: int) -> int:
        return 4 * 8

    def init(self, z: Tensor) -> PseudoTransientState:
        return PseudoTransientState(None)

    def step(  # type: ignore[override]
        self, f: Evaluator, at: Evaluation, state: PseudoTransientState
    ) -> tuple[Tensor, PseudoTransientState]:
        norm = row_norms(at.r)[:, None]
        first = norm if state.first_norm is None else state.first_norm
        rate = norm / torch.where(first > 0, first, 1.0) / self.delta
        system = self.system(f, at)
        system.diagonal(dim1=1, dim2=2).add_(rate)
        # of length one, so that neither tiny nor huge states leave what the solve can hold
        step = norm * solve_general(system, at.r.double() / torch.where(norm > 0, norm, 1.0))
        return at.z + step.to(at.z.dtype), PseudoTransientState(first)


@dataclass(frozen=True)
class PseudoTransientState:
    """State of a solve: ||r_0||, (B, 1) float64, None before the first point."""

    first_norm: Tensor | None
