"""Limited-memory secant pairs per row, and the step that all multisecant methods share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.loop.step_solver import StepSolver
from deqlm_solvers.methods.damping import FLOOR, Damping
from deqlm_solvers.methods.plain_phase import PlainPhase

__all__ = ["Pairs", "Secant", "SecantState"]


class Pairs:
    """A ring of secant pairs (s, y) = (change of z, change of r) per row; buffers are allocated once.

    All rows store into the same slot; ``count`` says per row how many of the newest pairs it may use.

    Attributes:
        s, y: (B, M, N), inner dtype, views of one buffer, in ring order.
        count: (B, 1) int64.
        ages: (1, M), 0 to M - 1: age of a pair in order of age, newest first.
        newest: slot of the newest pair.
        new_s, new_y: that pair, (B, N) each.
        by_age: permutation (M,) between ring order and order of age; it is its own inverse.
    """

    def __init__(self, memory: int, z: Tensor) -> None:
        rows, unknowns = z.shape
        self.memory = memory
        self.both = z.new_zeros(rows, 2 * memory, unknowns)
        self.s, self.y = self.both[:, :memory], self.both[:, memory:]
        self.count = torch.zeros(rows, 1, dtype=torch.int64, device=z.device)
        slots = torch.arange(memory, device=z.device)
        self.ages = slots[None]
        self._orders = (slots[:, None] - slots[None]) % memory
        self.newest, self.by_age = memory - 1, self._orders[memory - 1]
        self.new_s, self.new_y = self.s[:, -1], self.y[:, -1]

    def push(self, at: Evaluation, base_z: Tensor, base_r: Tensor, unit: Tensor, skip: Tensor | None = None) -> None:
        """Store ``unit`` times the pair from the base point to ``at`` over the oldest one.

        A zero pair is stored where ``skip`` (B, 1) is True.
        """
        slot = self.newest = (self.newest + 1) % self.memory
        self.by_age, s, y = self._orders[slot], self.s[:, slot], self.y[:, slot]
        self.new_s, self.new_y = s, y
        torch.sub(at.z, base_z, out=s).mul_(unit)
        torch.sub(at.r, base_r, out=y).mul_(unit)
        if skip is not None:
            s.masked_fill_(skip, 0.0)
        # the residual of a row that is held changes where f mixes rows, which says nothing of its own steps
        y.masked_fill_(~s.any(1, keepdim=True), 0.0)
        self.count = self.count + 1

    def unused(self, squares: Tensor) -> Tensor:
        """Return which pairs, by age, a row cannot use: forgotten, or of no length. squares: (B, M)."""
        return (self.ages >= self.count) | (squares <= 0)

    def shape(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ||s|| and ||y||, (B, 1) float64, and s . y, (B, 1), of the newest pair."""
        along = (self.new_s * self.new_y).sum(1, keepdim=True)
        return row_norms(self.new_s)[:, None], row_norms(self.new_y)[:, None], along

    def products(self, block: Tensor, vector: Tensor) -> Tensor:
        """Return inner products of `s` or `y` with a vector (B, N), by age, (B, M) float64.

        A plain sum, because batched matrix products round by the place of a row in the batch, or are slow.
        """
        return (block * vector[:, None]).sum(2)[:, self.by_age].double()

    def combine(self, weights: Tensor, damping: Tensor) -> Tensor:
        """Return sum_j weights_j (s_j + damping y_j), (B, N). weights: (B, M) by age; damping: (B, 1)."""
        ring = weights[:, self.by_age]
        weight = torch.cat((ring, damping * ring), dim=1)
        # a product with one to three rows rounds by the place of a row in the batch, one with four does not
        return torch.bmm(torch.stack((weight, weight, weight, weight), dim=1), self.both)[:, 0]


@dataclass
class SecantState:
    """State of a multisecant solve; one entry per row, columns (B, 1).

    Attributes:
        pairs: the history.
        products: inner products of the history by name, by age, (B, M, M) float64; owned by the method.
        base_z, base_r: point and residual that the pending step started from, (B, N).
        base_norm: ||base_r||, float64; kept up by line searches only.
        best_z, best_r, best_norm: point with the smallest residual so far, where restarts begin.
        first_norm: ||r_0||, float64.
        unit: power of two near 1 / ||r_0||, inner dtype; pairs are stored in it, so that their products neither
            overflow nor vanish in float32.
        damping: beta, and how restarts shorten it.
        taken: steps so far; 0 before the first evaluation.
        phase: decides between plain steps and mixing; None where the method always mixes.
        fits_scale: the first pair of a row shortens a beta that is too long for the scale of the map.
        searches: the method shortens steps by a line search.
        direction, length: pending step of a line search, (B, N) and (B, 1) float64; None without one.
    """

    pairs: Pairs
    products: dict[str, Tensor]
    base_z: Tensor
    base_r: Tensor
    base_norm: Tensor
    best_z: Tensor
    best_r: Tensor
    best_norm: Tensor
    first_norm: Tensor
    unit: Tensor
    damping: Damping
    taken: int = 0
    phase: PlainPhase | None = None
    fits_scale: bool = False
    searches: bool = False
    direction: Tensor | None = None
    length: Tensor | None = None


class Secant(StepSolver):
    """Step z + beta r - (S + beta Y) K^-1 q from the last pairs S, Y; methods differ in K and q.

    Safeguard, per row: a step is rejected when it is longer than ``LONGEST`` residuals, or when the residual that it
    led to exceeds ``GROWTH`` ||r_0|| (n+1)^-1.1 after n steps or is not finite. Then the row restarts from its best
    point with the damping halved (at least 1/16) and an empty history; a restart that is refused itself is shortened
    further, because to repeat it would lead to the same point. A point so refused ends no row while there is a shorter
    step to try (`StepSolver.final`).

    Reference:
        J. Zhang, B. O'Donoghue, S. Boyd (2020), Globally convergent type-I Anderson acceleration, SIAM J. Optim. 30,
        algorithm 3 (the residual test). Deviates: restarts at the best point, because a plain step is a safeguard for
        nonexpansive maps only.
    """

    LONGEST: ClassVar[float] = 1e6
    GROWTH: ClassVar[float] = 100.0
    SMALLEST_DAMPING: ClassVar[float] = FLOOR

    steps_evaluate: ClassVar[bool] = False

    @abstractmethod
    def pairs_kept(self) -> int:
        """Return how many secant pairs are stored."""

    @abstractmethod
    def initial_damping(self) -> float:
        """Return beta of the first step."""

    def plain_below(self) -> float:
        """Return the factor per evaluation below which a row takes plain steps; 0 never does."""
        return 0.0

    def fits_scale(self) -> bool:
        """Say whether the first pair of a row shortens a beta that is too long for the scale of the map."""
        return False

    @abstractmethod
    def product_names(self) -> tuple[str, ...]:
        """Return which inner products of the history the method keeps."""

    @abstractmethod
    def weights(self, products: dict[str, Tensor], pairs: Pairs, r: Tensor, damping: Tensor) -> Tensor:
        """Bring the products up to date with the newest pair and return K^-1 q, by age, (B, M) float64.

        A method with `plain_below` keeps in ``products["gain"]``, (B, 1) float64, by how much the mix lowers the square
        of the residual, in units of the pairs.
        """

    def buffers(self, rows: int, unknowns: int, dtype: torch.dtype) -> dict[str, int]:
        kept = self.pairs_kept()
        history = 2 * kept * rows * unknowns * inner_dtype(dtype).itemsize
        return {"history": history, "gram": len(self.product_names()) * rows * kept**2 * 8}

    def init(self, z: Tensor) -> SecantState:
        kept = self.pairs_kept()
        blank = torch.zeros(z.shape[0], kept, kept, dtype=torch.float64, device=z.device)
        infinite = torch.full((z.shape[0], 1), torch.inf, dtype=torch.float64, device=z.device)
        return SecantState(
            pairs=Pairs(kept, z),
            products={name: blank.clone() for name in self.product_names()},
            base_z=z,
            base_r=z,
            base_norm=infinite,
            best_z=z,
            best_r=z,
            best_norm=infinite,
            first_norm=infinite,
            unit=torch.ones(z.shape[0], 1, dtype=z.dtype, device=z.device),
            damping=Damping(self.initial_damping(), z),
            fits_scale=self.fits_scale(),
        )

    def step(self, f: Evaluator, at: Evaluation, state: SecantState) -> tuple[Tensor, SecantState]:  # type: ignore[override]
        norm = at.r_norm[:, None]
        if state.taken == 0:
            state.first_norm = state.best_norm = state.base_norm = norm
            state.best_z, state.best_r, state.base_z, state.base_r = at.z, at.r, at.z, at.r
            state.unit = _power_of_two_near_inverse(norm, at.r.dtype)
            state.phase = PlainPhase(self.plain_below(), norm, f.eps) if self.plain_below() > 0 else None
            step = state.damping.beta * at.r
            if state.searches:
                state.direction = step
            z_next = at.z + step
        else:
            sound = norm <= state.first_norm * (self.GROWTH * (state.taken + 1) ** -1.1)
            z_next = self._advance(at, norm, sound, state)
        state.taken += 1
        return z_next, state

    def final(self, state: SecantState) -> Tensor | None:
        return None if state.taken == 0 else state.damping.spent[:, 0]

    def _advance(
        self, at: Evaluation, norm: Tensor, sound: Tensor, state: SecantState, held: Tensor | None = None
    ) -> Tensor:
        """Accept the point, go back to the one before, or restart from the best one, per row; return the next point.

        Args:
            at: the evaluation just made.
            norm: ||r||, (B, 1).
            sound: rows whose residual is acceptable, (B, 1).
            state: changed in place.
            held: rows whose step a line search shortens: their pair is not worth keeping, (B, 1), or None.
        """
        pairs, damping = state.pairs, state.damping
        refused = ~sound
        left_out = refused if held is None else refused | held
        pairs.push(at, state.base_z, state.base_r, state.unit, left_out)
        move = None
        scale, better = None, norm < state.best_norm
        if state.fits_scale or state.phase is not None:
            moved, changed, along = pairs.shape()
            scale = moved / changed if state.fits_scale else None
            if state.phase is not None:
                move = state.phase.look(norm, at.fz_norm[:, None], along, moved * changed)
                sound = (sound | move.bears) & ~move.lost
                state.first_norm = torch.where(move.arrived, torch.maximum(state.first_norm, norm), state.first_norm)
                damping.beta = damping.beta.masked_fill(move.sets_out, damping.initial)
                better = (better & ~move.back) | move.arrived
                pairs.count = pairs.count.masked_fill(move.plain, 0)
        state.best_norm = torch.where(better, norm, state.best_norm)
        state.best_z = torch.where(better, at.z, state.best_z)
        state.best_r = torch.where(better, at.r, state.best_r)
        damping.fit((pairs.count == 1) & ~left_out, scale)
        weights = self.weights(state.products, pairs, state.unit * at.r, damping.beta)
        if state.phase is not None:
            state.phase.judge(state.products["gain"], (state.unit * norm).square())
        step = damping.beta * at.r - pairs.combine(weights.to(at.r.dtype), damping.beta) / state.unit
        accepted = sound & (row_norms(step)[:, None] <= self.LONGEST * norm)
        refused, start_z, start_r = ~accepted, state.best_z, state.best_r
        if move is not None:
            stays = ~move.back
            accepted, refused = accepted & stays, refused & stays
            start_z = torch.where(stays, start_z, state.base_z)
            start_r = torch.where(stays, start_r, state.base_r)
        pairs.count = pairs.count * accepted
        damping.settle(norm, refused, held)
        state.base_z = torch.where(accepted, at.z, start_z)
        state.base_r = torch.where(accepted, at.r, start_r)
        step = torch.where(accepted, step, damping.beta * state.base_r)
        if state.searches:
            state.direction = step
        return state.base_z + step


def _power_of_two_near_inverse(norm: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 2^-e for norm = m 2^e with m in [.5, 1); 1 where the norm is zero or not finite. norm: (B, 1) float64.

    Neither it nor its inverse leaves the range of ``dtype``.
    """
    most = 120 if dtype == torch.float32 else 1000
    exponent = torch.frexp(norm).exponent.clamp(-most, most)
    usable = norm.isfinite() & (norm > 0)
    return torch.ldexp(torch.ones_like(norm), torch.where(usable, -exponent, 0)).to(dtype)
