"""A solve inside transforms of torch.func: all elements of mapped dimensions are rows of one solve."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deqlm.equilibrium.given import row_mask, row_scale, tokens_of
from deqlm.equilibrium.watch import Watch
from deqlm.gradients.base import Gradient
from deqlm.gradients.transformable import Point
from deqlm.wrap.failures import Failures
from deqlm.wrap.held import Held
from deqlm.wrap.levels import Levels, bare, outside, transformed
from deqlm.wrap.lifted import Lifted
from deqlm.wrap.memory_cap import MemoryCap
from deqlm.wrap.rows import RowMap
from deqlm.wrap.solved_by import SolvedBy
from deqlm_solvers import Cost, Layout, Solution, Solve
from deqlm_solvers.loop.criterion import Criterion

__all__ = ["solve_transformed", "summary"]


@sdpa_kernel(SDPBackend.MATH)  # the fused kernels have no rule for a vmap
def solve_transformed(
    f: RowMap,
    how: Solve,
    gradient: Gradient,
    failures: Failures,
    *,
    scale: float | Tensor | None,
    token_mask: Tensor | None,
    cap: MemoryCap | None,
    tokens: int | None,
    watch: Watch | None,
) -> Solution:
    """Do what `deqlm.equilibrium.rows.solve_rows` does, inside transforms of torch.func.

    The solve sees plain tensors: every element of a mapped dimension is a row, with its own status. Its point is then
    made a function that the transforms can differentiate, by `Gradient.transform`.

    Raises:
        RuntimeError: the gradient method cannot be transformed, or the call looks at points on the way.
    """
    if watch is not None:
        raise RuntimeError("states and on_evaluation are not there inside transforms of torch.func; leave them away")
    levels = Levels()
    lifted = Lifted(f, levels)
    given = (row_scale(scale, f.rows, how.stop), None)
    if token_mask is not None:
        given = given[0], row_mask(token_mask, f.rows)
    differentiated = _find_mapped(lifted, *given)
    layout = _layout(lifted, *given)
    # the value with grad is that to which forward mode gives a tangent
    graph = torch.is_grad_enabled() or any(level.kind == "jvp" for level in levels.open)
    with outside():
        z0 = lifted.taken(f.rows.z0).detach()
        how = how.resolve(z0, *f.rows.dtypes)
        if cap is not None:
            how, gradient = cap.apply(how, gradient.for_solve(how), f.rows.narrow(lifted.rows), layout)
        masked = None if token_mask is None else Criterion(how.stop, layout, z0).masked
    _hold(lifted, masked, z0)
    with outside():
        z0 = z0 if lifted.held is None else lifted.held.point(z0)
        with torch.no_grad():
            if graph:
                sol, by = gradient.forward(how, lifted, z0, layout)  # type: ignore[arg-type]
            else:
                sol, by = gradient.plain(how, lifted, z0, layout, failures), None
        failures.report(sol, how.stop)
    if by is None:
        sol = sol.replace(z=lifted.given(sol.z))
    else:
        sol = _tied(lifted, gradient, failures, sol, by, z0, differentiated)
    return _unpacked(lifted, sol, tokens_of(how.stop, f.rows) if tokens is None else tokens)


def summary(sol: Solution) -> Solution:
    """Return `Solution.without_state` with one entry per row and element of mapped dimensions, these in front."""
    told = sol.without_state()

    def plain(t: Tensor, axis: int) -> Tensor:
        made = bare(t)
        mapped = made.dim() - t.dim()
        return made.movedim(list(range(mapped, mapped + axis)), list(range(axis)))

    return told.map_rows(plain) if transformed() else told


def _find_mapped(lifted: Lifted, *given: Tensor | None) -> bool:
    """Find the levels at which start, map or what is given are mapped, which are those at which the point is.

    Returns whether anybody may differentiate the point. The evaluation makes what is made once in a call, such as
    normed weights, as all transforms are to see it.
    """
    f, levels = lifted.f, lifted.levels
    levels.map_over(f.rows.z0, *given)
    fz = f(f.rows.z0)
    while levels.map_over(fz):
        with outside():
            start = lifted.taken(f.rows.z0).detach()
        fz = f(lifted.given(start))
    return levels.orders > 0 or bare(fz).requires_grad


def _layout(lifted: Lifted, scale: Tensor | None, mask: Tensor | None) -> Layout:
    rows = lifted.f.rows
    return Layout(
        leaves=rows.row_shapes,
        batch_dims=rows.batch_dims,
        scale=None if scale is None else lifted.taken(scale),
        token_mask=None if mask is None else lifted.taken(mask),
        round=rows.narrow(lifted.rows).round if len(set(rows.dtypes)) > 1 else None,
    )


def _hold(lifted: Lifted, masked: Tensor | None, z0: Tensor) -> None:
    """Hold masked unknowns, (R, N), in the map, seen either way."""
    if masked is not None:
        with outside():
            lifted.held = Held(masked, z0)
        lifted.f.held = Held(lifted.given(masked), lifted.f.rows.z0)


def _tied(
    lifted: Lifted,
    gradient: Gradient,
    failures: Failures,
    sol: Solution,
    by: SolvedBy,
    z0: Tensor,
    differentiated: bool,
) -> Solution:
    """Return the solution with the point that the transforms see; rows that failed badly are constants."""
    f, shape = lifted.f, (*lifted.levels.sizes, *lifted.f.rows.batch_shape)
    adjoint = failures.adjoint()
    adjoint.reshape(shape)
    with outside():
        bad = failures.bad_rows(sol, by.solve.stop)
        z = sol.z if bad is None else _sound(lifted, sol.z, z0, bad)
    start = f.rows.z0 if f.held is None else f.held.point(f.rows.z0)
    y = gradient.transform(Point(lifted, start, z, sol, by, adjoint, differentiated))
    adjoint.reshape(shape)
    if bad is not None:
        y = torch.where(lifted.given(bad)[:, None], lifted.given(sol.z), y)
    told = sol.residual_of if gradient.keeps_point else "previous"
    return sol.replace(z=y, adjoint=adjoint, residual_of=told)


def _sound(lifted: Lifted, z: Tensor, z0: Tensor, bad: Tensor) -> Tensor:
    """Return ``z`` with the start in bad rows, from which less is to be feared."""
    z = torch.where(bad[:, None], z0.nan_to_num(0.0, 0.0, 0.0), z)
    with torch.no_grad():
        if not bool(lifted(z).isfinite().all()):
            text = (
                "f is not finite in failed rows: inside transforms of torch.func, gradients that they share may be NaN"
            )
            warnings.warn(text, UserWarning, stacklevel=2)
    return z


def _unpacked(lifted: Lifted, sol: Solution, tokens: int) -> Solution:
    f, rows = lifted.f, lifted.f.rows
    count = f.row_calls * math.prod(lifted.levels.sizes)

    def per_row(t: Tensor, axis: int) -> Tensor:
        with outside():
            t = t.movedim(axis, 0)
        t = lifted.given(t).movedim(0, axis)
        return t.reshape((*t.shape[:axis], *rows.batch_shape, *t.shape[axis + 1 :]))

    # torch clones into other memory formats than its own nowhere in a vmap
    z = rows.unpack(sol.z) if lifted.levels.mapped else rows.result(sol.z)
    spent = Cost(f.calls, count, count * tokens, sol.cost.vjps, sol.cost.jvps)
    return sol.map_rows(per_row).replace(z=z, cost=spent)
