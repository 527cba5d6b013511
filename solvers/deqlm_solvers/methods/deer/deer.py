"""Newton's method along a sequence: for causal maps, with the blocks of near tokens and a parallel scan."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.core.checks import number, require, whole
from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.norms import lengths
from deqlm_solvers.core.options import options
from deqlm_solvers.core.sizes import installed_bytes, read_bytes, show_bytes
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation, Map, Solver, register_solver
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.evaluator import Evaluator, check_start
from deqlm_solvers.loop.loop import run
from deqlm_solvers.loop.step_solver import StepSolver
from deqlm_solvers.methods.deer.blocks import blocks_from_products, signs_of, tangents_at_once
from deqlm_solvers.methods.deer.grid import Blocks, Grid, Structure
from deqlm_solvers.methods.deer.reach import Reach, check_causal, mixed_groups, move_some
from deqlm_solvers.methods.deer.scan import bidiagonal_product, damped_step, newton_step

__all__ = ["Deer"]

LONGEST = 1000.0
"""A step longer than so many times ||z|| + ||f(z)|| is damped."""

SHORT = 16
"""Tokens below which what `move_some` moves may leave a look ahead unseen."""


@register_solver("deer")
@options
class Deer(Solver):
    """Newton's method for causal maps z_t = f_t(z_0, ..., z_t) that keeps what a token sees of itself and of the last.

    For recurrences, z_t = f_t(z_{t-1}), and for other maps in which plain iteration needs about one evaluation per
    token: a step solves all tokens at once, by a scan of depth log L, and the number of steps hardly grows with L
    where the recurrence forgets. The residual that is tested is the true one, so the fixed point is that of f whenever
    a row converges, however rough the Jacobian. With the default gradient the backward solve is one scan too.

    A step solves (I - A) dz = f(z) - z. A holds the D x D blocks dF_t/dz_t and, with ``lags=1``, dF_t/dz_{t-1} of the
    Jacobian at z; what a token sees of earlier ones lags behind by one step. For a map that sees one token back this is
    Newton's method and a linear map takes one step. Otherwise, with exact blocks, a linear map takes at most
    L / (lags + 1) steps, rounded up, if none is damped.

    A probe finds out, before the first step, what a token sees. Blocks take D products where it is one token alone,
    the one before (a recurrence) or itself, 2 D where it is both, and L D where it is more, the least that a causal map
    without further structure allows. ``colours=C`` takes C D products and is exact where no token sees C or more tokens
    back; elsewhere dF_t/dz_{t-k} stands for itself plus dF_t/dz_{t-k-C} and so on. A map that has its blocks at hand
    gives ``blocks``.

    ``structure`` makes blocks cheaper, D = G S. "diagonal": one product for all D columns and a scan of numbers; exact
    for elementwise recurrences. "block": S products, for tokens (..., S) of which only numbers along the last dimension
    see each other, such as the rows of a matrix-valued state. A map that couples more makes it a quasi-Newton method,
    with the same fixed point where it converges and more steps: what a product mixes in has random signs, and in rows
    where the probe sees this blocks are means over the steps so far, which forgets it.

    A product counts as an evaluation: a step costs 1 + C S of ``max_iter``, 2 with ``blocks``, and the probe two to
    four; of what remains, one evaluation tests the last point. `Solution.steps` counts points. Tokens are the first
    dimension of a row behind the batch, (B, L, D, ...); a state (B, N) is one token (Newton's method), or N tokens with
    ``Stop(per="token")``. Any floating dtype; algebra in float64. Rows are independent: one whose I - A is singular or
    not finite takes a plain step.

    Args:
        structure: "dense", "block" or "diagonal", of the blocks.
        lags: 1 or 0; 0 keeps the diagonal blocks alone.
        colours: C, > ``lags``; None for as few as the probe finds to be exact, and L without one.
        damping: >= 0; 0 never damps. A row whose step would be longer than 1000 (||z|| + ||f(z)||) takes the one that
            minimises ||(I - A) dz - r||^2 + damping ||r|| / ||r_0|| ||dz||^2 in its place, r_0 its first residual.
            A chain of blocks that are only part of the Jacobian can grow like a power of L, and does so on models with
            RMS norms started at zero.
        blocks: computes them, (B, N) -> (lags + 1, B, L, D, D), or (lags + 1, B, L, G, S, S) for "block", or
            (lags + 1, B, L, D) for "diagonal"; entry (k, b, t, i, j) the derivative of number i of token t in number j
            of token t - k, zero where t < k. Counts as one product.
        probe: move some tokens to see who changes, and raise if one before them does. False trusts the map.
        memory_cap: most bytes that a solve may hold, f's inside left out: a number, a text such as "2GiB", or None for
            what the machine has. Forecast before anything is allocated.

    Raises:
        TypeError: ``blocks`` is no function, or `to_dict` with one, which has no plain form.
        ValueError: an option outside its range; in a solve, a ``max_iter`` that cannot pay one step, a state of several
            tensors, one without a dimension for the groups, or a map that is not causal.
        MemoryError: in a solve, the forecast is above ``memory_cap``.
        NoDerivativeError: in a solve, autograd cannot differentiate f and no ``blocks`` are given.

    Reference:
        Y. H. Lim et al. (2024), Parallelizing non-linear sequential models over the sequence length, ICLR (DEER, which
        is "dense" on a recurrence). X. Gonzalez et al. (2024), Towards scalable and stable parallelization of nonlinear
        RNNs, NeurIPS (quasi-DEER, which is "diagonal", and ELK, the damping). F. Danieli et al. (2025), ParaRNN
        (block-diagonal cells). Deviates: a diagonal block, because token t of an implicit map sees its own state;
        the diagonal by one product with random signs; damping of long steps only, and in proportion to the residual.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Deer, Layout, Solve, Stop
        >>> later = torch.arange(64) > 0
        >>> rnn = lambda z: torch.sin(z.roll(1, dims=1) * later + 1)
        >>> solve = Solve(Deer(), Stop(max_iter=100, rtol=1e-6, per="token"))  # 64 tokens of width 1
        >>> sol = solve(rnn, torch.zeros(1, 64))
        >>> sol.converged.item(), sol.steps.item(), sol.cost.jvps
        (True, 6, 5)
    """

    structure: Structure = "dense"
    lags: int = 1
    colours: int | None = None
    damping: float = 0.01
    blocks: Callable[[Tensor], Tensor] | None = None
    probe: bool = True
    memory_cap: int | str | None = None

    guarantees: ClassVar[frozenset[str]] = frozenset({"known_answers", "rows", "check_every", "half", "sequences"})
    honours: ClassVar[frozenset[str]] = StepSolver.honours

    def __post_init__(self) -> None:
        known = self.structure in ("dense", "block", "diagonal")
        require(known, "structure", self.structure, "'dense', 'block' or 'diagonal'")
        whole("lags", self.lags, 0)
        require(self.lags <= 1, "lags", self.lags, "0 or 1")
        if self.colours is not None:
            whole("colours", self.colours, self.lags + 1)
        number("damping", self.damping, "finite and >= 0", lambda d: 0 <= d < float("inf"))
        if self.blocks is not None:
            if not callable(self.blocks):
                raise TypeError(f"blocks must be a function or None, got {type(self.blocks).__name__}")
            require(self.colours is None, "colours", self.colours, "None with blocks=..., which needs no tangents")
        require(isinstance(self.probe, bool), "probe", self.probe, "True or False")
        if self.memory_cap is not None:
            read_bytes("memory_cap", self.memory_cap)
        if self.structure != "dense":
            # a state of one token is no sequence, and what is left out of its Jacobian may be what matters
            object.__setattr__(self, "guarantees", type(self).guarantees - {"known_answers"})

    def to_dict(self) -> dict[str, Any]:
        if self.blocks is not None:
            raise TypeError("a Deer with blocks=... has no plain form, because a function is no plain data")
        return super().to_dict()

    def for_layout(self, layout: Layout, stop: Stop) -> Solver:
        return _Along(self, layout, stop)

    def peak_bytes(self, rows: int, unknowns: int, dtype: torch.dtype, stop: Stop) -> int | None:
        return self.for_layout(Layout(), stop).peak_bytes(rows, unknowns, dtype, stop)

    def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
        check_start(z0)
        rows, unknowns = z0.shape
        grid = Grid.of(layout, stop, unknowns, self.structure)
        asked, spent = self._asked(f, z0, grid, layout) if z0.numel() else (None, Cost())
        along = _Along(self, layout, stop, asked)
        probes, price = spent.evaluations, along.price(grid)
        named = f"one step of 'deer' on {grid.tokens} tokens of width {grid.numbers}"
        rule = (
            f">= {price + 1 + probes}, {2 + probes} evaluations and {price - 1} products with the Jacobian, for {named}"
        )
        require(stop.max_iter > price + probes, "max_iter", stop.max_iter, rule)
        self._check_memory(along.peak_bytes(rows, unknowns, z0.dtype, stop), rows, grid, z0.device)
        left = stop.max_iter - probes
        points = left // price if stop.is_budget else 1 + (left - 1) // price
        sol = run(along, f, z0, stop.replace(max_iter=points), layout)
        return sol.replace(cost=sol.cost + spent)

    def _asked(self, f: Map, z0: Tensor, grid: Grid, layout: Layout) -> tuple[_Asked | None, Cost]:
        """Return what tokens of f see, as far as anybody asks, and what finding out has cost.

        Raises:
            ValueError: the map is not causal.
        """
        sequence, groups = grid.tokens > 1, grid.groups > 1 and self.blocks is None
        if not self.probe or not (sequence or groups):
            return None, Cost()
        evaluator, mask = Evaluator(f, z0, layout.round), layout.token_mask
        kind = z0.device.type
        quiet = nullcontext() if evaluator.autocast is None else torch.autocast(kind, enabled=False)
        with torch.no_grad(), quiet:
            at = evaluator.at(z0.to(evaluator.inner))
            reach = move_some(evaluator, at, grid, mask) if sequence and self.colours is None else None
            if sequence and (reach is None or reach.further or grid.tokens < SHORT):
                check_causal(evaluator, at, grid, mask)
            mixed = mixed_groups(evaluator, at, grid, mask) if groups else None
        return _Asked(reach, mixed), evaluator.cost

    def _check_memory(self, forecast: int | None, rows: int, grid: Grid, device: torch.device) -> None:
        if self.memory_cap is None:
            limit, what = installed_bytes(device), "what the machine has, "
        else:
            limit, what = read_bytes("memory_cap", self.memory_cap), "memory_cap="
            if forecast is None:
                raise ValueError("memory_cap cannot be held with blocks=..., whose memory is unknown")
        if forecast is not None and limit is not None and forecast > limit:
            cheaper = "structure='diagonal' or 'block', " if self.structure == "dense" else ""
            raise MemoryError(
                f"deer, {rows} rows of {grid.tokens} tokens of width {grid.numbers}: {show_bytes(forecast)} is above "
                f"{what}{show_bytes(limit)}; use {cheaper}fewer rows or chunks of tokens at a time, or lags=0"
            )


class _Asked(NamedTuple):
    """What the probe found: what tokens see, and rows (B,) whose groups see each other; None where nobody asked."""

    reach: Reach | None
    mixed: Tensor | None


class _Along(StepSolver):
    """The steps of a `Deer` on the rows of one layout."""

    name = "deer"
    guarantees: ClassVar[frozenset[str]] = Deer.guarantees

    def __init__(self, deer: Deer, layout: Layout, stop: Stop, asked: _Asked | None = None) -> None:
        self.deer, self.layout, self.stop = deer, layout, stop
        self.reach, self.mixed = asked or (None, None)

    def grid(self, unknowns: int) -> Grid:
        """Return how a row of N unknowns is read."""
        return Grid.of(self.layout, self.stop, unknowns, self.deer.structure)

    def rehearsable(self) -> bool:
        return False

    def lags(self, grid: Grid) -> tuple[int, ...]:
        """Return of which tokens blocks are kept: 0 is itself, 1 the one before."""
        wanted = (0, 1)[: self.deer.lags + 1 if grid.tokens > 1 else 1]
        if self.reach is None:
            return wanted
        return tuple(lag for lag in wanted if (self.reach.own, self.reach.before)[lag])

    def colours(self, grid: Grid) -> int:
        """Return C."""
        if self.deer.colours is not None:
            return min(self.deer.colours, grid.tokens)
        if self.reach is None or self.reach.further:
            return grid.tokens
        return max(1, self.reach.own + self.reach.before)

    def price(self, grid: Grid) -> int:
        """Return what a step costs of ``max_iter``."""
        return 2 if self.deer.blocks is not None else 1 + self.colours(grid) * grid.width * bool(self.lags(grid))

    def peak_bytes(self, rows: int, unknowns: int, dtype: torch.dtype, stop: Stop) -> int | None:
        """Return what holds where autograd gives the blocks; what the tangents take inside f is f's."""
        if self.deer.blocks is not None:
            return None
        grid, size = self.grid(unknowns), inner_dtype(dtype).itemsize
        lags, matrices = len(self.lags(grid)), 8 * rows * unknowns * grid.width
        # tangents, one for all rows and one for each, and results
        pushed = tangents_at_once(grid, rows, self.colours(grid) * grid.width) * unknowns * (3 * rows + 1) * size
        # results of products and of the batched solves, in float64
        algebra = ((0, 4, 6), (0, 6, 13))[self.deer.damping > 0][lags] * matrices
        means = grid.groups > 1
        return (1 + 2 * means) * lags * matrices + max(pushed, algebra) + 12 * rows * unknowns * max(size, 8)

    def init(self, z: Tensor) -> _AlongState:
        return _AlongState(averages=self.mixed is not None and bool(self.mixed.any()))

    def step(self, f: Evaluator, at: Evaluation, state: _AlongState) -> tuple[Tensor, _AlongState]:  # type: ignore[override]
        rows, unknowns = at.z.shape
        if not at.z.numel():
            return at.z, state
        grid = self.grid(unknowns)
        r = at.r.double()
        norm = _norm(r)
        if state.first is None:
            state.first = norm
        blocks = self._blocks(f, at.z, grid, state)
        if state.averages:
            blocks = state.averaged(blocks, self.mixed)
        # of length one, so that neither tiny nor huge states leave what the solve can hold
        rhs = (r / torch.where(norm > 0, norm, 1.0)).reshape(rows, *grid)
        unit = newton_step(blocks, rhs)
        sound = _norm(rhs - bidiagonal_product(blocks, unit)) < 0.5
        if self.deer.damping > 0:
            free = sound & (norm * _norm(unit) <= LONGEST * (_norm(at.z) + _norm(at.fz)))
            if not bool(free.all()):
                held = damped_step(blocks, rhs, self.deer.damping * (norm / state.first).nan_to_num()[:, 0])
                unit = torch.where(free[..., None, None], unit, held)
                sound = free | (_norm(rhs - bidiagonal_product(blocks, held)) < 1.0)
        step = torch.where(sound, norm * unit.flatten(1), r)
        return at.z + step.to(at.z.dtype), state

    def _blocks(self, f: Evaluator, z: Tensor, grid: Grid, state: _AlongState) -> Blocks:
        lags = self.lags(grid)
        if self.deer.blocks is None:
            signs = signs_of(grid, state.taken if state.averages else 0)
            blocks = blocks_from_products(lambda v: f.products(z, v), z, grid, lags, self.colours(grid), signs)
        else:
            known = self._known(f, z, grid)
            blocks = Blocks(*(known[lag] if lag in lags else None for lag in (0, 1)))
        mask = self.layout.token_mask
        # tokens that do not count are held, whatever f makes of them
        return blocks if mask is None else blocks.held(mask.to(z.device))

    def _known(self, f: Evaluator, z: Tensor, grid: Grid) -> Tensor:
        """Return the blocks of the user's function, (lags + 1, B, L, G, S, S) float64."""
        assert self.deer.blocks is not None
        kept, (tokens, groups, width) = (self.deer.lags + 1, z.shape[0]), grid
        axes, shape = {
            "dense": ("D, D", (tokens, width, width)),
            "block": ("G, S, S", (tokens, groups, width, width)),
            "diagonal": ("D", (tokens, groups)),
        }[self.deer.structure]
        known = f.known(z, self.deer.blocks, "blocks", f"(lags + 1, B, L, {axes})", (*kept, *shape))
        return known.double().reshape(*kept, *grid, width)


@dataclass
class _AlongState:
    """State of a solve.

    Attributes:
        averages: some row has groups that see each other.
        first: norm of each row's first residual, (B, 1) float64, or None before it is known.
        mean: of the blocks so far, or None before the first ones and where nobody averages.
        taken: steps so far.
    """

    averages: bool
    first: Tensor | None = None
    mean: Blocks | None = None
    taken: int = 0

    def averaged(self, new: Blocks, mixed: Tensor | None) -> Blocks:
        """Return ``new`` with the means over all steps in ``mixed`` rows (B,)."""
        assert mixed is not None
        self.taken += 1
        if self.mean is None:
            self.mean = new
            return new
        rows = mixed[:, None, None, None, None]
        pairs = zip(self.mean, new, strict=True)
        self.mean = Blocks(*(None if b is None or m is None else _blended(m, b, self.taken, rows) for m, b in pairs))
        return self.mean


def _blended(mean: Tensor, new: Tensor, number: int, rows: Tensor) -> Tensor:
    """Return the mean of ``number`` blocks in ``rows``, else the new ones; what is not finite is left out."""
    moved = mean + (new - mean) / number
    return torch.where(rows, torch.where(moved.isfinite(), moved, mean), new)


def _norm(t: Tensor) -> Tensor:
    """Return the norms of rows (B, ...), (B, 1) float64."""
    return lengths(t.flatten(1))[:, None]
