"""Limited-memory secant pairs per row, and the step that all multisecant methods share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqlm_solvers.solver import Evaluation, Map, StepSolver

__all__ = ["Pairs", "Secant", "SecantState"]


class Pairs:
    """A ring of secant pairs (s, y) = (change of z, change of r) per row; buffers are allocated once.

    The slot is shared by all rows; ``birth`` tells per row and slot when the pair was stored, -1 where there is none.

    Attributes:
        s, y: (B, M, N), inner dtype.
        birth: (B, M) int64.
    """

    def __init__(self, memory: int, z: Tensor) -> None:
        rows, unknowns = z.shape
        self.memory = memory
        self.s = z.new_zeros(rows, memory, unknowns)
        self.y = z.new_zeros(rows, memory, unknowns)
        self.birth = torch.full((rows, memory), -1, dtype=torch.int64, device=z.device)
        self.stored = 0
        slots = torch.arange(memory, device=z.device)
        self.orders = (slots[:, None] - slots[None, :]) % memory

    @property
    def slot(self) -> int:
        """Where the next pair goes: over the oldest one."""
        return self.stored % self.memory

    def push(self, s: Tensor, y: Tensor, keep: Tensor) -> int:
        """Store a pair per row, s and y (B, N), valid where ``keep`` (B,); return its slot."""
        slot = self.slot
        self.s[:, slot] = s
        self.y[:, slot] = y
        self.birth[:, slot] = torch.where(keep, self.stored, -1)
        self.stored += 1
        return slot

    def newest_first(self) -> Tensor:
        """Return the slots from the newest pair to the oldest, (M,) int64."""
        return self.orders[(self.stored - 1) % self.memory]

    def clear(self, rows: Tensor) -> None:
        """Forget every pair of the rows where ``rows`` (B,) is True."""
        self.birth.masked_fill_(rows[:, None], -1)


@dataclass
class SecantState:
    """State of a multisecant solve; one entry per row.

    Attributes:
        pairs: the history; None with no memory.
        algebra: products of the history, owned by the method.
        base_z, base_r: point and residual that the pending step started from, (B, N).
        base_norm: ||base_r||, (B,) float64.
        best_z, best_r, best_norm: point with the smallest residual so far, where restarts begin.
        first_norm: ||r_0||, (B,) float64.
        damping: (B,), inner dtype; halved on every restart.
        accepted: steps accepted since the start, (B,) float64.
        fresh: no evaluation has been seen yet.
        direction, length: pending step of a line search, (B, N) and (B,); None without one.
    """

    pairs: Pairs | None
    algebra: Any
    base_z: Tensor
    base_r: Tensor
    base_norm: Tensor
    best_z: Tensor
    best_r: Tensor
    best_norm: Tensor
    first_norm: Tensor
    damping: Tensor
    accepted: Tensor
    fresh: bool = True
    direction: Tensor | None = None
    length: Tensor | None = None


class Secant(StepSolver):
    """Step z + beta r - (S + beta Y) K^-1 q from the last pairs S, Y; methods differ in K and q.

    Safeguard, per row: a step is rejected when it is longer than ``LONGEST`` residuals, or when the residual that it
    led to exceeds ``GROWTH`` ||r_0|| (n+1)^-1.1 after n accepted steps. Then the row restarts from its best point with
    the damping halved (at least 1/16) and an empty history.

    Reference:
        J. Zhang, B. O'Donoghue, S. Boyd (2020), Globally convergent type-I Anderson acceleration, SIAM J. Optim. 30,
        algorithm 3 (the residual test). Deviates: restarts at the best point, because a plain step is a safeguard for
        nonexpansive maps only.
    """

    LONGEST: ClassVar[float] = 1e6
    GROWTH: ClassVar[float] = 100.0
    SMALLEST_DAMPING: ClassVar[float] = 1 / 16

    @abstractmethod
    def pairs_kept(self) -> int:
        """Return how many secant pairs are stored."""

    @abstractmethod
    def initial_damping(self) -> float:
        """Return beta of the first step."""

    @abstractmethod
    def open_algebra(self, pairs: Pairs) -> Any:
        """Return the buffers for products of the history."""

    @abstractmethod
    def coefficients(self, algebra: Any, pairs: Pairs, slot: int, r: Tensor, damping: Tensor) -> Tensor:
        """Bring the products up to date with the pair in ``slot`` and return K^-1 q, (B, M), inner dtype."""

    def init(self, z: Tensor) -> SecantState:
        pairs = Pairs(self.pairs_kept(), z) if self.pairs_kept() else None
        infinite = torch.full((z.shape[0],), torch.inf, dtype=torch.float64, device=z.device)
        return SecantState(
            pairs=pairs,
            algebra=None if pairs is None else self.open_algebra(pairs),
            base_z=z,
            base_r=z,
            base_norm=infinite,
            best_z=z,
            best_r=z,
            best_norm=infinite,
            first_norm=infinite,
            damping=torch.full((z.shape[0],), self.initial_damping(), dtype=z.dtype, device=z.device),
            accepted=torch.zeros_like(infinite),
        )

    def step(self, f: Map, at: Evaluation, state: SecantState) -> tuple[Tensor, SecantState]:
        norm = torch.linalg.vector_norm(at.r, dim=1, dtype=torch.float64)
        if state.fresh:
            state.fresh = False
            state.first_norm = state.best_norm = state.base_norm = norm
            state.best_z, state.best_r, state.base_z, state.base_r = at.z, at.r, at.z, at.r
            step = state.damping[:, None] * at.r
            self._propose(state, step)
            return at.z + step, state
        better = norm < state.best_norm
        state.best_norm = torch.where(better, norm, state.best_norm)
        state.best_z = torch.where(better[:, None], at.z, state.best_z)
        state.best_r = torch.where(better[:, None], at.r, state.best_r)
        grown = ~(norm <= self.GROWTH * state.first_norm * (state.accepted + 1) ** -1.1)
        return self._advance(at, norm, grown, state), state

    def _advance(self, at: Evaluation, norm: Tensor, grown: Tensor, state: SecantState) -> Tensor:
        """Accept the point or restart from the best one, per row; return the next point."""
        step = state.damping[:, None] * at.r
        if state.pairs is not None:
            pairs = state.pairs
            slot = pairs.push(at.z - state.base_z, at.r - state.base_r, ~grown)
            gamma = self.coefficients(state.algebra, pairs, slot, at.r, state.damping)
            change = torch.bmm(gamma[:, None], pairs.s) + (state.damping[:, None] * gamma)[:, None] @ pairs.y
            step = step - change[:, 0]
        long = ~(torch.linalg.vector_norm(step, dim=1, dtype=torch.float64) <= self.LONGEST * norm)
        restart = grown | long
        if state.pairs is not None:
            state.pairs.clear(restart)
        halved = (0.5 * state.damping).clamp_min(self.SMALLEST_DAMPING)
        state.damping = torch.where(restart, halved, state.damping)
        state.accepted = state.accepted + ~restart
        back = restart[:, None]
        state.base_z = torch.where(back, state.best_z, at.z)
        state.base_r = torch.where(back, state.best_r, at.r)
        state.base_norm = torch.where(restart, state.best_norm, norm)
        step = torch.where(back, state.damping[:, None] * state.best_r, step)
        self._propose(state, step)
        return state.base_z + step

    def _propose(self, state: SecantState, step: Tensor) -> None:
        """Hook for a line search: remember the pending step."""
