"""What a failed solve probably owes to its layer: told when the failure is, from a few evaluations more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.wrap.generators import accelerators, generators_kept
from deqlm.wrap.rows import RowMap
from deqlm_solvers import Solution
from deqlm_solvers.core.agreement import rows_changed
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.core.policy import RUNAWAY
from deqlm_solvers.loop.runaway import GROWN

__all__ = ["likely_mistake"]

LEFT, BENT = 0.9, 0.05
"""A row ran away where this part of its first residual is left at a point that has grown, and f is no slow contraction,
whose Jacobian is nearer to I."""

_START = (
    "f is not finite at the start, a state of zeros, and finite at another one: it divides by the state or takes its "
    "logarithm; start elsewhere, DEQ(layer, start=torch.ones_like), or give deqlm.solve another z0"
)
_RANDOM = (
    "f gives another value at every evaluation: noise of torch's own generators is held within a solve, that of "
    "another generator, of numpy or of random is not; draw it before the solve, and give it as an argument"
)
_STATISTICS = "BatchNorm in train() mixes rows: call eval(), or make one problem of the batch with batch_dims=0"
_BATCH_SECOND = "takes the batch second and mixes rows, which come first here: give it batch_first=True"
_MIXED = "f of one row depends on other rows: keep rows apart, or make one problem of the batch with batch_dims=0"


def likely_mistake(f: RowMap, layer: Any, sol: Solution) -> str:
    """Return what is probably wrong, in one sentence without numbers; empty where nothing is found.

    It costs five evaluations of f at most, which are not counted. Torch's generators are put back. Nothing is evaluated
    in a process of several, where each one must make the same evaluations.

    Args:
        f: the map that was solved.
        layer: the module or function that it evaluates, whose parts may tell.
        sol: the flat solution, with at least one row that failed.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several or not f.rows.z0.numel():
        return ""
    try:
        with torch.no_grad(), generators_kept(accelerators(None, f.rows.device)):
            return _found(f, layer, sol)
    except Exception:  # f may raise anything; the failure that is told of is another one
        return ""


def _found(f: RowMap, layer: Any, sol: Solution) -> str:
    z0 = f.rows.z0.detach().nan_to_num()
    first = _value(f, z0)
    if _fails_at_zero(f, z0, first):
        return _START
    again = _value(f, z0)
    if bool(rows_changed(again, first).any()):
        return _RANDOM
    if len(z0) > 1 and _mixes(f, z0, first):
        return next(_mixing_parts(layer), _MIXED)
    told = torch.zeros_like(sol.failed) if sol.runaway is None else sol.runaway
    likely = told | (sol.failed & _grown(f, z0, first, sol.z.detach()))
    return RUNAWAY if bool((likely & _hands_on(f, z0, first, told)).any()) else ""


def _fails_at_zero(f: RowMap, z0: Tensor, first: Tensor) -> bool:
    """Say whether a row starts at zero, where f is not finite, though two steps from a positive state are.

    Entries of that state differ, so that nothing that a layer subtracts from them leaves zeros.
    """
    lost = ~first.isfinite().all(1) & (z0 == 0).all(1)
    if not bool(lost.any()):
        return False
    elsewhere = 1 + torch.arange(z0.shape[1], device=z0.device).remainder(3).to(z0.dtype)
    second = _value(f, _value(f, elsewhere.expand_as(z0)))
    return bool((lost & second.isfinite().all(1)).any())


def _value(f: RowMap, z: Tensor) -> Tensor:
    """Return f at a copy of ``z`` (B, N), not counted."""
    rows = f.rows
    return rows.pack(f.f(rows.unpack(z.clone()), *f.prepared)).detach().clone()


def _mixes(f: RowMap, z0: Tensor, first: Tensor) -> bool:
    """Move the first row, which a recurrent layer hands on to the others, and see whether another one notices."""
    moved = z0.clone()
    moved[0] += 1 + moved[0].abs() + torch.arange(z0.shape[1], device=z0.device).remainder(3).to(z0.dtype)
    return bool(rows_changed(_value(f, moved), first)[1:].any())


def _mixing_parts(layer: Any) -> Iterator[str]:
    """Yield what the modules of a layer that mixes rows may be told, the surest first."""
    parts = list(layer.modules()) if isinstance(layer, nn.Module) else []
    for part in parts:
        if isinstance(part, nn.MultiheadAttention | nn.RNNBase) and not part.batch_first:
            yield f"{type(part).__name__} {_BATCH_SECOND}"
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in parts):
        yield _STATISTICS


def _grown(f: RowMap, z0: Tensor, first: Tensor, z: Tensor) -> Tensor:
    """Return rows, (B,) bool, whose point is much larger than the start and no better."""
    value = _value(f, z)
    larger = torch.maximum(row_norms(z), row_norms(value)) > GROWN * torch.maximum(row_norms(z0), row_norms(first))
    return larger & (row_norms(value - z) > LEFT * row_norms(first - z0))


def _hands_on(f: RowMap, z0: Tensor, first: Tensor, told: Tensor) -> Tensor:
    """Return rows, (B,) bool, in which f is z + F(z) at the start: the mean diagonal of the Jacobian is about 1.

    Where the solver has not ``told`` that the row ran away, F must be more than the lack of a slow contraction.
    """
    sign = torch.randint(0, 2, z0.shape, device=z0.device).to(z0.dtype) * 2 - 1
    size = torch.maximum(row_norms(z0), row_norms(first))[:, None] / z0.shape[1] ** 0.5
    step = (torch.finfo(z0.dtype).eps ** 0.5 * torch.where(size > 0, size, 1.0) * sign).to(z0.dtype)
    change, step = (_value(f, z0 + step) - first).double(), step.double()
    diagonal = (change * step).sum(1) / step.square().sum(1)
    return ((diagonal - 0.8).abs() <= 0.5) & (told | (row_norms(change - step) > BENT * row_norms(step)))
