"""Solves a packed map, and gives the answer the structure of the state."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from deqlm.compiled.compiler import Compiler
from deqlm.compiled.maps import CompiledMap
from deqlm.compiled.refused import NotCompiledError
from deqlm.equilibrium.given import row_mask, row_scale, tokens_of
from deqlm.equilibrium.transformed import solve_transformed
from deqlm.equilibrium.watch import Watch
from deqlm.gradients.base import Gradient
from deqlm.gradients.forward_mode import in_forward_mode, with_tangent, without_tangents
from deqlm.wrap.eager import asked_again
from deqlm.wrap.failures import Failures
from deqlm.wrap.held import Held
from deqlm.wrap.levels import transformed
from deqlm.wrap.memory_cap import MemoryCap
from deqlm.wrap.rows import RowMap, Rows
from deqlm.wrap.solved_by import SolvedBy
from deqlm_solvers import Cost, Layout, Map, Solution, Solve
from deqlm_solvers.core.processes import Processes
from deqlm_solvers.loop.criterion import Criterion

__all__ = ["solve_rows"]


def solve_rows(
    f: RowMap,
    how: Solve,
    gradient: Gradient,
    failures: Failures,
    *,
    scale: float | Tensor | None = None,
    token_mask: Tensor | None = None,
    cap: MemoryCap | None = None,
    tokens: int | None = None,
    watch: Watch | None = None,
    together: Processes | None = None,
    compiler: Compiler | None = None,
) -> Solution:
    """Solve a packed map from its own start and unpack the solution; see `deqlm.solve`.

    ``tokens`` is how many one evaluation of a row takes, for the cost; None reads it from ``Stop(per="token")``.
    ``watch`` is what the call looks at on the way, ``together`` are the processes that solve in step, and ``compiler``
    makes programs of the solve, if it can.
    """
    if failures.then is not None and torch.is_grad_enabled() and not gradient.reports():
        raise ValueError(
            f"on_backward would never be called: {gradient} solves nothing in backward; leave it away, or use a "
            "gradient that does, such as 'implicit'"
        )
    if transformed():
        given = {"scale": scale, "token_mask": token_mask, "cap": cap, "tokens": tokens, "watch": watch}
        return solve_transformed(f, how, gradient, failures, **given)  # type: ignore[arg-type]
    if compiler is not None and not compiler.refused:
        more = {"scale": scale, "token_mask": token_mask, "cap": cap, "tokens": tokens, "watch": watch}
        try:
            if watch is not None:
                raise NotCompiledError("states and on_evaluation look at every evaluation")
            if together is not None:
                raise NotCompiledError("processes that solve in step talk to each other at every evaluation")
            compiled = compiler.over(f, how, gradient)
            sol = solve_rows(compiled, how, gradient, failures, **more)  # type: ignore[arg-type]
            if not torch.is_grad_enabled() and scale is None and token_mask is None and cap is None:
                compiler.remember(compiled, how, gradient, quiet=failures.on_failure == "ignore")
            return sol
        except NotCompiledError as error:
            compiler.refuse(error)
    if in_forward_mode():
        with without_tangents():
            more: dict[str, Any] = {"scale": scale, "token_mask": token_mask, "cap": cap, "tokens": tokens}
            more |= {"watch": watch, "together": together}
            sol = solve_rows(f, how, gradient, failures, **more)
        by = SolvedBy(how, Layout(leaves=f.rows.row_shapes, batch_dims=f.rows.batch_dims))
        return with_tangent(sol, f, by, gradient, failures)
    rows = f.rows
    how = how.resolve(rows.z0, *rows.dtypes)
    if tokens is None:
        tokens = tokens_of(how.stop, rows)
    layout = _plain_layout(rows.row_shapes, rows.batch_dims)
    if scale is not None or token_mask is not None or len(set(rows.dtypes)) > 1 or together is not None:
        layout = replace(
            layout,
            scale=row_scale(scale, rows, how.stop),
            token_mask=None if token_mask is None else row_mask(token_mask, rows),
            round=rows.round if len(set(rows.dtypes)) > 1 else None,
            together=together,
        )
    if cap is not None:
        how, gradient = cap.apply(how, gradient.for_solve(how), rows, layout)
    if watch is not None:
        how = watch.over(how, rows)
    failures = failures.of(f)
    z0 = rows.z0
    if layout.token_mask is not None and (masked := Criterion(how.stop, layout, z0).masked) is not None:
        f.held = Held(masked, z0)
        z0 = f.held.point(z0)
    if torch.is_grad_enabled():
        if parametrize._cache_enabled:
            # inside parametrize.cached() the first evaluation makes the weights of all, and the solver's has no graph
            f(z0)
        with asked_again():
            sol = gradient.attach(how, f, z0, layout, failures)
    elif torch.is_inference_mode_enabled():
        # tensors made in inference mode have no version counter, by which work in place is found
        with torch.inference_mode(False), torch.no_grad():
            sol = gradient.plain(how, f if isinstance(f, CompiledMap) else _inferring(f), z0, layout, failures)
        failures.report(sol, how.stop)
    else:
        sol = gradient.plain(how, f, z0, layout, failures)
        failures.report(sol, how.stop)
    if watch is not None:
        sol = watch.close(sol, f, SolvedBy(how, layout), gradient, failures)
    if sol.adjoint is not None:
        sol.adjoint.reshape(tuple(rows.batch_shape))
    spent = Cost(f.calls, f.row_calls, f.row_calls * tokens, sol.cost.vjps, sol.cost.jvps)
    return _unpack(sol, rows, spent)


@functools.lru_cache(maxsize=256)
def _plain_layout(row_shapes: tuple[tuple[int, ...], ...], batch_dims: int) -> Layout:
    return Layout(leaves=row_shapes, batch_dims=batch_dims)


def _inferring(f: Map) -> Map:
    """Return f evaluated in inference mode, but where a derivative is wanted; its result is none of its tensors."""

    def evaluate(z: Tensor) -> Tensor:
        with torch.inference_mode(not torch.is_grad_enabled()):
            fz = f(z)
        return fz.clone()

    return evaluate


def _unpack(sol: Solution, rows: Rows, cost: Cost) -> Solution:
    states = tuple(rows.result(state) for state in sol.states)
    sol = sol.replace(z=rows.result(sol.z), states=states, cost=cost)
    if rows.batch_dims == 1:
        return sol
    return sol.map_rows(lambda t, axis: t.reshape((*t.shape[:axis], *rows.batch_shape, *t.shape[axis + 1 :])))
