"""DF-SANE: the residual as direction, spectral step lengths, a nonmonotone search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.checks import whole
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, Map, register_solver
from deqlm_solvers.loop.step_solver import StepSolver

__all__ = ["DFSane"]

GAMMA = 1e-4
SHORTEST, LONGEST = 1e-10, 1e10
"""Bounds of |sigma|; beyond them a step is a plain one."""
LEAST = 1e-6
"""Length of a trial below which nothing is left to try."""


@register_solver("df_sane")
@options
class DFSane(StepSolver):
    """Spectral residual method: steps along f(z) - z, both ways, with the length that the last two points suggest.

    Six states of memory, one evaluation per trial, no system to solve: for many unknowns and maps that expand in some
    directions and contract in others, where Picard steps lead away and histories do not fit. ||r|| need not fall at
    every step: it must fall below the largest of the last ``window`` ones, plus a forcing term that dies out. A trial
    that fails is followed by one in the opposite direction, then by shorter ones from where the row was; points that
    are not finite are refused alike. State (B, N), any floating dtype.

    Args:
        window: accepted points whose largest ||r|| bounds the next, >= 1; 1 descends.

    Raises:
        ValueError: an option outside its range.

    Reference:
        W. La Cruz, J. M. Martinez, M. Raydan (2006), Spectral residual method without gradient information for solving
        large-scale nonlinear systems of equations, Math. Comp. 75, algorithm DF-SANE with M = 10, gamma = 1e-4,
        eta_k = ||F(x_0)||^2 / (1 + k)^2. Deviates: the spectral step is 1, a plain step, where their formula gives none
        between 1e-10 and 1e10, and its first value is 1, because F is z - f(z).

    Examples:
        >>> import torch
        >>> from deqlm_solvers import DFSane, Solve, Stop
        >>> sol = Solve(DFSane(), Stop(rtol=1e-6))(lambda z: 1 - 2 * z, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.3333
    """

    window: int = 10

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "lean"}
    steps_evaluate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("window", self.window, 1)

    def init(self, z: Tensor) -> DFSaneState:
        column = torch.zeros(z.shape[0], 1, dtype=torch.float64, device=z.device)
        past = torch.zeros(z.shape[0], min(self.window, 1024), dtype=torch.float64, device=z.device)
        return DFSaneState(z, torch.zeros_like(z), column + torch.inf, past, column + 1, column + 1, column + 1, column)

    def final(self, state: DFSaneState) -> Tensor:
        return (state.base_norm.isinf() | (torch.minimum(state.forth, state.back) <= LEAST))[:, 0]

    def step(self, f: Map, at: Evaluation, state: DFSaneState) -> tuple[Tensor, DFSaneState]:
        norm = row_norms(at.r)[:, None]
        first = state.base_norm.isinf()
        state.first_norm = torch.where(first, norm, state.first_norm)
        merit = (norm / torch.where(state.first_norm > 0, state.first_norm, 1.0)).square().nan_to_num(torch.inf)
        base = (state.base_norm / torch.where(state.first_norm > 0, state.first_norm, 1.0)).square()
        length = torch.where(state.forward, state.forth, state.back)
        bound = state.past.amax(1, keepdim=True) + (1 + state.taken) ** -2 - GAMMA * length.square() * base
        accepted = first | (merit <= bound)
        self._accept(accepted, first, at, norm, merit, state)
        self._shorten(~accepted, merit, base, length, state)
        along = torch.where(state.forward, state.forth, -state.back) * state.sigma
        return state.base_z + along.to(at.z.dtype) * state.base_r, state

    def _accept(
        self, which: Tensor, first: Tensor, at: Evaluation, norm: Tensor, merit: Tensor, state: DFSaneState
    ) -> None:
        """Take up the point in rows ``which`` (B, 1), with the spectral length of the step to it."""
        s, y = at.z - state.base_z, state.base_r - at.r
        size = row_norms(s)[:, None]
        unit = torch.where(size > 0, size, 1.0)
        curved = ((s / unit.to(s.dtype)) * y).sum(1, keepdim=True).double()
        sigma = size / curved
        usable = ~first & (sigma.abs() >= SHORTEST) & (sigma.abs() <= LONGEST)
        state.sigma = torch.where(which, torch.where(usable, sigma, 1.0), state.sigma)
        state.base_z = torch.where(which, at.z, state.base_z)
        state.base_r = torch.where(which, at.r, state.base_r)
        state.base_norm = torch.where(which, norm, state.base_norm)
        moved = torch.cat((merit, state.past[:, :-1]), 1)
        state.past = torch.where(which, moved, state.past)
        state.taken = state.taken + which
        state.forth, state.back = state.forth.masked_fill(which, 1.0), state.back.masked_fill(which, 1.0)
        state.forward = state.forward | which

    def _shorten(self, which: Tensor, merit: Tensor, base: Tensor, length: Tensor, state: DFSaneState) -> None:
        """Turn rows ``which`` (B, 1) round, and shorten the way that they tried."""
        lowest = (length.square() * base / (merit + (2 * length - 1) * base)).nan_to_num(0.0)
        shorter = torch.minimum(torch.maximum(lowest, 0.1 * length), 0.5 * length).clamp_min(LEAST)
        state.forth = torch.where(which & state.forward, shorter, state.forth)
        state.back = torch.where(which & ~state.forward, shorter, state.back)
        state.forward = state.forward ^ which


@dataclass
class DFSaneState:
    """State of a solve; one entry per row, columns (B, 1) float64.

    Attributes:
        base_z, base_r, base_norm: point that trials start from, its residual, (B, N), and ||r||; infinite before the
            first point.
        past: (||r|| / ||r_0||)^2 of the last accepted points, (B, window).
        sigma: the spectral step length.
        forth, back: lengths of the next trials along the residual and against it.
        first_norm: ||r_0||.
        taken: accepted points.
        forward: the pending trial goes along the residual, bool.
    """

    base_z: Tensor
    base_r: Tensor
    base_norm: Tensor
    past: Tensor
    sigma: Tensor
    forth: Tensor
    back: Tensor
    first_norm: Tensor

    def __post_init__(self) -> None:
        self.taken = torch.zeros_like(self.first_norm)
        self.forward = torch.ones_like(self.first_norm, dtype=torch.bool)
