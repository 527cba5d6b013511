"""Newton's method along a sequence: for causal maps, with the blocks of near tokens and a parallel scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.checks import number, require, whole
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.norms import lengths
from deqlm_solvers.core.options import options
from deqlm_solvers.core.sizes import read_bytes, show_bytes
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation, Map, Solver, register_solver
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.evaluator import Evaluator, check_start
from deqlm_solvers.loop.loop import run
from deqlm_solvers.loop.step_solver import StepSolver
from deqlm_solvers.methods.deer.blocks import Grid, check_causal, colours_at_once, lagged_blocks
from deqlm_solvers.methods.deer.scan import bidiagonal_product, damped_step, newton_step

__all__ = ["Deer"]

LONGEST = 1000.0
"""A step longer than so many times ||z|| + ||f(z)|| is damped."""


@register_solver("deer")
@options
class Deer(Solver):
    """Newton's method for causal maps z_t = f_t(z_0, ..., z_t) that keeps what a token sees of itself and of the last.

    For maps in which plain iteration needs about one evaluation per token: a step solves all tokens at once, by a scan
    of depth log L, so the number of steps grows more slowly than L. It costs many products with the Jacobian, which
    pays where depth is what counts (a GPU with room) and not where work is (a CPU).

    A step solves (I - A) dz = f(z) - z. A holds the D x D blocks dF_t/dz_t and, with ``lags=1``, dF_t/dz_{t-1} of the
    Jacobian at z; what a token sees of earlier ones lags behind by one step. The residual that is tested is the true
    one, so the fixed point is that of f whenever a row converges. For a map that sees one token back, such as an RNN
    over z, this is Newton's method and a linear map takes one step. Otherwise, with exact blocks, a linear map takes at
    most L / (lags + 1) steps, rounded up, if none is damped.

    Each block is exact for any causal map with ``colours=None``, at L D products per step, the least that a map without
    further structure allows. ``colours=C`` takes C D products and is exact where no token sees C or more tokens back;
    elsewhere dF_t/dz_{t-k} stands for itself plus dF_t/dz_{t-k-C} and so on. With C = 2 these are the 2 D products of
    an RNN. A map that has its blocks at hand gives ``blocks``.

    A product counts as an evaluation: a step costs 1 + C D of ``max_iter``, 2 with ``blocks``, and the probe one; of
    what remains, one evaluation tests the last point. `Solution.steps` counts points. Tokens are the first dimension of
    a row behind the batch, (B, L, D, ...); a state (B, N) is one token (Newton's method), or N tokens with
    ``Stop(per="token")``. Any floating dtype; algebra in float64. Rows are independent: one whose I - A is singular or
    not finite takes a plain step.

    Args:
        lags: 1 or 0; 0 keeps the diagonal blocks alone.
        colours: C, > ``lags``, or None for L.
        damping: >= 0; 0 never damps. A row whose step would be longer than 1000 (||z|| + ||f(z)||) takes the one that
            minimises ||(I - A) dz - r||^2 + damping ||r|| / ||r_0|| ||dz||^2 in its place, r_0 its first residual.
            A chain of blocks that are only part of the Jacobian can grow like a power of L, and does so on models with
            RMS norms started at zero.
        blocks: computes them, (B, N) -> (lags + 1, B, L, D, D), entry (k, b, t, i, j) the derivative of number i of
            token t in number j of token t - k, zero where t < k. Counts as one product.
        probe: move the last token once and raise if an earlier one changes. False trusts the map.
        memory_cap: most bytes that a solve may hold, f's inside left out: a number, a text such as "2GiB", or None for
            no limit. Forecast before anything is allocated.

    Raises:
        TypeError: ``blocks`` is no function, or `to_dict` with one, which has no plain form.
        ValueError: an option outside its range; in a solve, a ``max_iter`` that cannot pay one step, a state of several
            tensors, or a map that is not causal.
        MemoryError: in a solve, the forecast is above ``memory_cap``.
        NoDerivativeError: in a solve, autograd cannot differentiate f and no ``blocks`` are given.

    Reference:
        Y. H. Lim et al. (2024), Parallelizing non-linear sequential models over the sequence length, ICLR (DEER, which
        is ``colours=2`` on an RNN). X. Gonzalez et al. (2024), Towards scalable and stable parallelization of nonlinear
        RNNs, NeurIPS (ELK, the damping). Deviates: a diagonal block, because token t of an implicit map sees its own
        state; damping of long steps only, and in proportion to the residual.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Deer, Layout, Solve, Stop
        >>> later = torch.arange(64) > 0
        >>> rnn = lambda z: torch.sin(z.roll(1, dims=1) * later + 1)
        >>> solve = Solve(Deer(colours=2), Stop(max_iter=100, rtol=1e-6, per="token"))  # 64 tokens of width 1
        >>> sol = solve(rnn, torch.zeros(1, 64))
        >>> sol.converged.item(), sol.steps.item(), sol.cost.jvps
        (True, 6, 10)
    """

    lags: int = 1
    colours: int | None = None
    damping: float = 0.01
    blocks: Callable[[Tensor], Tensor] | None = None
    probe: bool = True
    memory_cap: int | str | None = None

    guarantees: ClassVar[frozenset[str]] = frozenset({"known_answers", "rows", "check_every", "half"})
    honours: ClassVar[frozenset[str]] = StepSolver.honours

    def __post_init__(self) -> None:
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
        along = _Along(self, layout, stop)
        rows, unknowns = z0.shape
        grid = along.grid(unknowns)
        probes, price = int(self._probes(grid)), self._price(grid)
        named = f"one step of 'deer' on {grid.tokens} tokens of width {grid.width}"
        rule = (
            f">= {price + 1 + probes}, {2 + probes} evaluations and {price - 1} products with the Jacobian, for {named}"
        )
        require(stop.max_iter > price + probes, "max_iter", stop.max_iter, rule)
        self._check_memory(along.peak_bytes(rows, unknowns, z0.dtype, stop), rows, grid)
        left = stop.max_iter - probes
        points = left // price if stop.is_budget else 1 + (left - 1) // price
        return run(along, f, z0, stop.replace(max_iter=points), layout)

    def _probes(self, grid: Grid) -> bool:
        return self.probe and grid.tokens > 1

    def _price(self, grid: Grid) -> int:
        return 2 if self.blocks is not None else 1 + self._colours(grid) * grid.width

    def _colours(self, grid: Grid) -> int:
        return grid.tokens if self.colours is None else min(self.colours, grid.tokens)

    def _check_memory(self, forecast: int | None, rows: int, grid: Grid) -> None:
        if self.memory_cap is None:
            return
        if forecast is None:
            raise ValueError("memory_cap cannot be held with blocks=..., whose memory is unknown")
        limit = read_bytes("memory_cap", self.memory_cap)
        if forecast > limit:
            raise MemoryError(
                f"deer, {rows} rows of {grid.tokens} tokens of width {grid.width}: {show_bytes(forecast)} is above "
                f"memory_cap={show_bytes(limit)}; use fewer rows or chunks of tokens at a time, or lags=0"
            )


class _Along(StepSolver):
    """The steps of a `Deer` on the rows of one layout."""

    name = "deer"
    guarantees: ClassVar[frozenset[str]] = Deer.guarantees

    def __init__(self, deer: Deer, layout: Layout, stop: Stop) -> None:
        self.deer, self.layout, self.stop = deer, layout, stop

    def grid(self, unknowns: int) -> Grid:
        """Return how a row of N unknowns is read."""
        return Grid.of(self.layout, self.stop, unknowns)

    def rehearsable(self) -> bool:
        return False

    def peak_bytes(self, rows: int, unknowns: int, dtype: torch.dtype, stop: Stop) -> int | None:
        """Return what holds where autograd gives the blocks; what the tangents take inside f is f's."""
        if self.deer.blocks is not None:
            return None
        grid, size = self.grid(unknowns), inner_dtype(dtype).itemsize
        colours = self.deer._colours(grid)
        lags, matrices = self.deer.lags, 8 * rows * grid.tokens * grid.width**2
        # tangents, one for all rows and one for each, and results
        pushed = colours_at_once(grid, rows, colours) * grid.width * unknowns * (3 * rows + 1) * size
        # results of products and of the batched solves, in float64
        algebra = ((4, 6) if self.deer.damping == 0 else (6, 13))[lags] * matrices
        return (lags + 1) * matrices + max(pushed, algebra) + 12 * rows * unknowns * max(size, 8)

    def init(self, z: Tensor) -> _AlongState:
        return _AlongState(first=None)

    def step(self, f: Evaluator, at: Evaluation, state: _AlongState) -> tuple[Tensor, _AlongState]:  # type: ignore[override]
        rows, unknowns = at.z.shape
        if not at.z.numel():
            return at.z, state
        grid = self.grid(unknowns)
        r = at.r.double()
        norm = _norm(r)
        if state.first is None:
            state.first = norm
            if self.deer._probes(grid):
                check_causal(f, at, grid, self.layout.token_mask)
        blocks = self._blocks(f, at.z, grid)
        # of length one, so that neither tiny nor huge states leave what the solve can hold
        rhs = (r / torch.where(norm > 0, norm, 1.0)).reshape(rows, *grid)
        unit = newton_step(blocks, rhs)
        left = _norm(rhs - bidiagonal_product(blocks, unit))
        sound = left < 0.5
        if self.deer.damping > 0:
            free = sound & (norm * _norm(unit) <= LONGEST * (_norm(at.z) + _norm(at.fz)))
            if not bool(free.all()):
                held = damped_step(blocks, rhs, self.deer.damping * (norm / state.first).nan_to_num()[:, 0])
                unit = torch.where(free[..., None], unit, held)
                sound = free | (_norm(rhs - bidiagonal_product(blocks, held)) < 1.0)
        step = torch.where(sound, norm * unit.flatten(1), r)
        return at.z + step.to(at.z.dtype), state

    def _blocks(self, f: Evaluator, z: Tensor, grid: Grid) -> Tensor:
        deer = self.deer
        if deer.blocks is None:
            blocks = lagged_blocks(f, z, grid, deer.lags, deer._colours(grid))
        else:
            axes, shape = "(lags + 1, B, L, D, D)", (deer.lags + 1, z.shape[0], *grid, grid.width)
            blocks = f.known(z, deer.blocks, "blocks", axes, shape).double()
        mask = self.layout.token_mask
        if mask is None:
            return blocks
        # tokens that do not count are held, whatever f makes of them, and their derivatives may be NaN
        counts = mask.to(z.device)[..., None, None]
        for lag, block in enumerate(blocks):
            block.masked_fill_(~counts, 0.0)
            block[:, lag:].masked_fill_(~counts[:, : counts.shape[1] - lag], 0.0)
        return blocks


@dataclass
class _AlongState:
    """State of a solve: ``first``, norm of each row's first residual, (B, 1) float64, or None before it is known."""

    first: Tensor | None


def _norm(t: Tensor) -> Tensor:
    """Return the norms of rows (B, ...), (B, 1) float64."""
    return lengths(t.flatten(1))[:, None]
