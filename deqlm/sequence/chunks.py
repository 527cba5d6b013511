"""Solves a causal map chunk after chunk; every mode goes through here.

Each chunk is solved with what was committed before as constants. To commit is one undamped evaluation
(y, cache) = F(z; cache) at the point z that the solve of the chunk returned, in every row its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqlm.equilibrium.rows import solve_rows
from deqlm.gradients import Gradient, Unrolled
from deqlm.sequence.chunk_evaluator import ChunkMap
from deqlm.sequence.chunked_solve import ChunkedSolve
from deqlm.sequence.frontier import WindowSolve
from deqlm.sequence.modes import Mode, TokenCall
from deqlm.wrap.failures import Failures
from deqlm.wrap.levels import transformed
from deqlm.wrap.memory_cap import MemoryCap
from deqlm.wrap.rows import RowMap
from deqlm_solvers import Layout, Map, Solution, Solve, Stop, options
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.processes import Processes

__all__ = ["Committed", "per_token", "solve_chunks"]


@dataclass(frozen=True, eq=False)
class Committed:
    """What a pass over the tokens leaves.

    Attributes:
        y: f at the returned point, (B, L, ...): one undamped evaluation; None where the last chunk was not committed.
        cache: the cache behind the last token, likewise.
    """

    y: Tensor | None
    cache: Any


def per_token(stop: Stop) -> Stop:
    """Return the stopping rule of a causal map: every token must pass, along dimension 1.

    ``keep="best_f"`` and a `Rule` know rows only and stay as they are.

    Raises:
        ValueError: a rule for other parts than tokens along dimension 1.

    Examples:
        >>> per_token(Stop(rtol=1e-3)).per
        'token'
    """
    if stop.keep == "best_f" or stop.criterion is not None:
        return stop
    require(stop.per != "leaf", "per", stop.per, "'token' for a causal map")
    require(stop.token_dim == 1, "token_dim", stop.token_dim, "1 for a causal map")
    return stop if stop.per == "token" else stop.replace(per="token")


def solve_chunks(
    f: RowMap,
    chunk: Callable[[int, int], ChunkMap],
    mode: Mode,
    how: Solve,
    gradient: Gradient,
    failures: Failures,
    *,
    cache: Any,
    commit: bool,
    token_mask: Tensor | None = None,
    cap: MemoryCap | None = None,
    owner: object = None,
    together: Processes | None = None,
) -> tuple[Solution, Committed]:
    """Solve the causal map ``f`` chunk after chunk and tie the joined point to autograd through the whole of f.

    With grad enabled the gradient method is applied to f itself, from the joined points: the phantom steps, or the
    adjoint, are those of the whole sequence.

    Args:
        f: the map of all tokens, of one leaf (B, L, ...).
        chunk: returns the map of tokens ``start`` to ``stop`` (exclusive), whose evaluations equal those of f.
        mode: where the tokens are cut.
        how: solver and stop of each chunk.
        gradient: as for `deqlm.solve`.
        failures: likewise.
        cache: what tokens before the first one left.
        commit: also commit the last chunk; needed for `Committed`.
        token_mask: (B, L) bool, True where a token counts; None counts all.
        cap: limit of memory, held against a solve of all tokens.
        owner: whose map it is; what ``Chunked("auto")`` has measured is kept as long as it lives.
        together: processes that solve in step, or None.

    Returns:
        The solution, whose ``z`` joins the points of all chunks (with grad: what the gradient method returns),
        ``steps`` are the evaluations of the chunks that the row went through, summed, and ``residual`` and ``status``
        the worst of them; and what was committed.

    Raises:
        ValueError: a gradient that differentiates the solver's own steps, with several chunks or a commit; a solver or
            stop that the mode cannot honour.
        RuntimeError: several chunks, or a commit, inside transforms of torch.func.
    """
    (shape,) = f.rows.shapes
    mode = mode.for_solver(how.solver)
    tokens: dict[str, Any] = {"token_mask": token_mask, "cap": cap, "tokens": shape[1], "together": together}
    if transformed():
        if mode.one_solve(shape[1]) and not commit:
            return solve_rows(f, how, gradient, failures, **tokens), Committed(None, None)
        raise RuntimeError(
            f"mode {mode.name!r} and caches cannot be transformed by torch.func, because chunks are cut and committed "
            "by values; use mode='simultaneous' without a cache"
        )
    if isinstance(gradient, Unrolled) and (torch.is_grad_enabled() or gradient.same_value):
        if mode.one_solve(shape[1]) and not commit:
            return solve_rows(f, how, gradient, failures, **tokens), Committed(None, None)
        raise ValueError(
            "gradient 'unrolled' differentiates the steps of one simultaneous solve, which commits no cache; use "
            "mode=Simultaneous() without a cache, another gradient, or torch.no_grad()"
        )
    if mode.one_solve(shape[1]) and not commit and (how.stop.is_budget or how.stop.keep == "best_f"):
        # no row leaves and nothing is committed: f itself does
        return solve_rows(f, how, gradient, failures, **tokens), Committed(None, None)
    if not mode.one_solve(shape[1]):
        factors = how.stop.first_tokens
        require(not factors, "first_tokens", factors, "left away with several chunks, each of which has a first one")
    way = mode.way(TokenCall(chunk, f.rows, how, cache, commit, owner))
    sol = solve_rows(f, ByChunks(how.solver, how.stop, way=way), gradient, failures, **tokens)
    done = Committed(torch.cat(way.outputs, dim=1), way.cache) if commit else Committed(None, None)
    return sol.replace(cost=sol.cost + way.cost), done


@options(kw_only=True)
class ByChunks(Solve):
    """A solve that goes chunk after chunk, in place of a plain one within a call; it evaluates no f but its own.

    Args:
        way: the way along the tokens.
    """

    way: ChunkedSolve | WindowSolve

    def __call__(self, f: Map, z0: Tensor, layout: Layout | None = None) -> Solution:
        with torch.no_grad():
            return self.way.go(self, z0, layout or Layout()).replace(solver=self.solver)
