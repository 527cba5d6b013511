"""Forward-mode differentiation: a solve sees no tangents, and its point gets one afterwards."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deqlm.gradients.base import Gradient
from deqlm.wrap.failures import Failures
from deqlm.wrap.rows import RowMap
from deqlm.wrap.solved_by import SolvedBy
from deqlm_solvers import Solution, Status

__all__ = ["in_forward_mode", "with_tangent", "without_tangents"]


def in_forward_mode() -> bool:
    """Say whether operations carry tangents: `torch.autograd.forward_ad.dual_level` is open.

    Examples:
        >>> in_forward_mode()
        False
    """
    return forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()  # type: ignore[attr-defined]


def without_tangents() -> AbstractContextManager[None]:
    """Return a context in which operations on dual tensors give plain ones."""
    return forward_ad._set_fwd_grad_enabled(False)


def with_tangent(sol: Solution, f: RowMap, by: SolvedBy, gradient: Gradient, failures: Failures) -> Solution:
    """Return the solution with a dual point where f has a tangent at it.

    Args:
        sol: of a solve without tangents, unpacked.
        f: the map, whose inputs and parameters may be dual.
        by: how the point was found.
        gradient: whose `Gradient.push_forward` makes the tangent.
        failures: what to do with rows that failed; unless it keeps them, theirs is zero.
    """
    with without_tangents():
        z = f.rows.pack(sol.z)
        f.solved_by = by
    adjoint = failures.adjoint()
    v = gradient.push_forward(f, z.detach(), adjoint)
    if v is None:
        return sol
    if failures.failed_grad != "keep":
        v = torch.where((sol.status.reshape(-1, 1) >= int(Status.DIVERGED)), 0.0, v)
    adjoint.reshape(tuple(f.rows.batch_shape))
    return sol.replace(z=f.rows.result(_dual(z, v)), adjoint=adjoint if sol.adjoint is None else sol.adjoint)


def _dual(z: Tensor, v: Tensor) -> Tensor:
    # a view of z shares its tangent with it, and z may be the caller's
    return forward_ad.make_dual(z.clone(), v.to(z.dtype))
