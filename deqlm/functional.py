"""The functional interface: solve z = f(z) for a tensor or a tree, with gradients."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from deqlm.gradients.base import GRADIENTS, Gradient
from deqlm.gradients.forward_mode import in_forward_mode, with_tangent, without_tangents
from deqlm.wrap.eager import eagerly
from deqlm.wrap.failures import Failures
from deqlm.wrap.held import Held
from deqlm.wrap.memory_cap import MemoryCap, OnCap
from deqlm.wrap.rows import RowMap, Rows
from deqlm.wrap.solved_by import SolvedBy
from deqlm_solvers import Cost, Layout, Map, Solution, Solve, Solver, Stop
from deqlm_solvers.core.checks import explain_options, require
from deqlm_solvers.core.kinds import require_state
from deqlm_solvers.core.solution import OnFailure
from deqlm_solvers.loop.criterion import Criterion

__all__ = ["STOP_HINTS", "solve", "solve_rows"]

STOP_HINTS = {
    **dict.fromkeys(("tol", "rtol", "atol", "max_iter", "per", "norm", "patience"), "give it as stop=Stop(...)"),
    **dict.fromkeys(("memory", "damping"), "give it to the solver, such as solver=Anderson(...)"),
}


@eagerly
@explain_options(STOP_HINTS)
def solve(
    f: Callable[..., Any],
    z0: Any,
    *,
    args: tuple[Any, ...] = (),
    solver: str | Mapping[str, Any] | Solver = "anderson",
    stop: Stop | None = None,
    gradient: str | Mapping[str, Any] | Gradient = "implicit",
    batch_dims: int | None = None,
    scale: float | Tensor | None = None,
    token_mask: Tensor | None = None,
    on_failure: OnFailure = "warn",
    failed_grad: str = "drop",
    memory_cap: int | str | None = None,
    on_cap: OnCap = "refuse",
) -> Solution:
    """Solve z = f(z, *args) for a tensor or a tree of tensors, every row on its own.

    With grad enabled the returned ``z`` carries the gradient of ``gradient`` with respect to parameters, ``args`` and
    whatever f captures; under ``torch.no_grad()`` it is the solver's point. In a child that was forked after threads
    had solved, a solve hangs as torch's own matrix products do; start such processes by "spawn".

    Args:
        f: maps a state to a state of the same structure, shapes, dtypes and device. It must be deterministic (`DEQ`
            holds dropout fixed, this function does not), must not write into its argument, and should not mix rows.
        z0: start; a tensor or a tree of tensors, floating point or complex. Never written to.
        args: further arguments of f. Tensors whose first dimensions are those of the batch are per row: give inputs
            here rather than capture them, so that a row with NaN inputs can be kept out of shared gradients.
        solver: a registered name, a dict with ``name`` and options, or an object.
        stop: when to end; None is ``Stop()`` (100 evaluations, rtol 1e-4).
        gradient: likewise, of `GRADIENTS`.
        batch_dims: leading dimensions that index independent rows. None is 1, or 0 for a 0-d state; a 1-d state must
            say 0 (one problem of N unknowns) or 1 (N scalar problems).
        scale: s of the tolerance ``atol + rtol * max(||f(z)||, s)``: a number, or one per row.
        token_mask: bool, batch shape + (L,), True where a token counts; for ``Stop(per="token")``.
        on_failure: "warn", "raise" or "ignore" when a row does not converge; costs one read after the loop.
        failed_grad: "drop" (rows that end NONFINITE or DIVERGED add zero to every gradient; costs one read after the
            loop), "keep" or "raise".
        memory_cap: most bytes that a solver may hold, of the forward and of the backward solve each: a number, a text
            such as "2GiB", or None for no limit. Forecast before the solve; what f needs inside is not in it.
        on_cap: what to do beyond it: "refuse" (`MemoryError`), or "shorten" the solver's history and say so.

    Returns:
        `Solution` with ``z`` in the structure of ``z0`` and one entry per row in the batch shape.

    Raises:
        TypeError, ValueError: bad input, an unknown option, or an f that changes structure, shape, dtype or device.
        KeyError: an unknown solver or gradient name.
        ConvergenceError: a row failed and a policy is "raise".

    Examples:
        >>> import deqlm, torch
        >>> sol = deqlm.solve(torch.cos, torch.zeros(()))
        >>> round(sol.z.item(), 3), bool(sol.converged)
        (0.739, True)
    """
    if not callable(f):
        raise TypeError(f"f must be a function or a module, got {type(f).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, args=(x,), got {type(args).__name__}")
    how = Solve(solver, Stop() if stop is None else stop)  # type: ignore[arg-type]
    method = GRADIENTS.make(gradient)
    method.check(how)
    failures = Failures(on_failure, failed_grad)  # type: ignore[arg-type]
    cap = MemoryCap.of(memory_cap, on_cap)
    rowmap = RowMap(Rows(z0, batch_dims), f, tuple(args), owner=f)
    return solve_rows(rowmap, how, method, failures, scale=scale, token_mask=token_mask, cap=cap)


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
) -> Solution:
    """Solve a packed map from its own start and unpack the solution; see `solve`.

    ``tokens`` is how many one evaluation of a row takes, for the cost; None reads it from ``Stop(per="token")``.
    """
    if in_forward_mode():
        with without_tangents():
            options = {"scale": scale, "token_mask": token_mask, "cap": cap, "tokens": tokens}
            sol = solve_rows(f, how, gradient, failures, **options)  # type: ignore[arg-type]
        by = SolvedBy(how, Layout(leaves=f.rows.row_shapes, batch_dims=f.rows.batch_dims))
        return with_tangent(sol, f, by, gradient, failures)
    rows = f.rows
    how = how.resolve(rows.z0, *rows.dtypes)
    if tokens is None:
        tokens = _tokens(how.stop, rows)
    layout = Layout(
        leaves=rows.row_shapes,
        batch_dims=rows.batch_dims,
        scale=_scale(scale, rows),
        token_mask=None if token_mask is None else _token_mask(token_mask, rows),
        round=rows.round if len(set(rows.dtypes)) > 1 else None,
    )
    if cap is not None:
        how, gradient = cap.apply(how, gradient.for_solve(how), rows, layout)
    failures = failures.of(f)
    z0 = rows.z0
    if layout.token_mask is not None and (masked := Criterion(how.stop, layout, z0).masked) is not None:
        f.held = Held(masked, z0)
        z0 = f.held.point(z0)
    if torch.is_grad_enabled():
        if parametrize._cache_enabled:
            # inside parametrize.cached() the first evaluation makes the weights of all, and the solver's has no graph
            f(z0)
        sol = gradient.attach(how, f, z0, layout, failures)
    elif torch.is_inference_mode_enabled():
        # tensors made in inference mode have no version counter, by which work in place is found
        with torch.inference_mode(False), torch.no_grad():
            sol = gradient.settle(_inferring(f), how(_inferring(f), z0, layout), failures)
        failures.report(sol, how.stop)
    else:
        sol = gradient.settle(f, how(f, z0, layout), failures)
        failures.report(sol, how.stop)
    if sol.adjoint is not None:
        sol.adjoint.reshape(tuple(rows.batch_shape))
    spent = Cost(f.calls, f.row_calls, f.row_calls * tokens, sol.cost.vjps, sol.cost.jvps)
    return _unpack(sol, rows, spent)


def _tokens(stop: Stop, rows: Rows) -> int:
    return rows.row_shapes[0][stop.token_dim - rows.batch_dims] if stop.per == "token" else 0


def _inferring(f: Map) -> Map:
    """Return f evaluated in inference mode, but where a derivative is wanted; its result is none of its tensors."""

    def evaluate(z: Tensor) -> Tensor:
        with torch.inference_mode(not torch.is_grad_enabled()):
            fz = f(z)
        return fz.clone()

    return evaluate


def _scale(scale: float | Tensor | None, rows: Rows) -> Tensor | None:
    if scale is None:
        return None
    ok = isinstance(scale, Tensor | int | float) and not isinstance(scale, bool)
    ok = ok and (not isinstance(scale, int) or abs(scale) <= sys.float_info.max)
    require(ok, "scale", scale, "a number or one value per row")
    if isinstance(scale, Tensor):
        require_state(scale, "scale")
        require(not scale.is_complex(), "scale", scale.dtype, "real")
    value = torch.as_tensor(scale, dtype=torch.float64, device=rows.device)
    ok = value.dim() == 0 or value.shape == rows.batch_shape
    require(ok, "scale", tuple(value.shape), f"a number or one value per row, {tuple(rows.batch_shape)}")
    return value.expand(rows.batch_shape).reshape(rows.count)


def _token_mask(mask: Tensor, rows: Rows) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(f"token_mask must be a bool tensor, True where a token counts, got {reprlib.repr(mask)}")
    require_state(mask, "token_mask")
    require(mask.dtype == torch.bool, "token_mask", mask.dtype, "bool, True where a token counts (token_mask.bool())")
    ok = mask.dim() == rows.batch_dims + 1 and mask.shape[:-1] == rows.batch_shape
    require(ok, "token_mask", tuple(mask.shape), f"the batch shape {tuple(rows.batch_shape)} and the tokens behind it")
    return mask.reshape(rows.count, mask.shape[-1])


def _unpack(sol: Solution, rows: Rows, cost: Cost) -> Solution:
    sol = sol.replace(z=rows.result(sol.z), cost=cost)
    if rows.batch_dims == 1:
        return sol
    return sol.map_rows(lambda t, axis: t.reshape((*t.shape[:axis], *rows.batch_shape, *t.shape[axis + 1 :])))
