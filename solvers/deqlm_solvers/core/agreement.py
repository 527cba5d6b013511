"""When two evaluations of the same rows are the same: what every probe of a map asks."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm_solvers.core.dtypes import rounding_slack
from deqlm_solvers.core.norms import lengths, row_norms

__all__ = ["ROUNDING", "rows_agree", "rows_changed"]

ROUNDING = 64
"""Units in the last place by which two evaluations of one shape may differ and count as equal."""


def rows_agree(got: Tensor, want: Tensor) -> Tensor:
    """Return the rows, (B,) bool, that another call of f (fewer rows, other neighbours) makes the same values of.

    The same is what differs by no more than kernels round by shape and place, and is finite in the same entries.

    Args:
        got: f at the rows in that call, (B, N).
        want: f at them in the call to compare with, likewise.

    Examples:
        >>> want = torch.ones(2, 3)
        >>> rows_agree(want + torch.tensor([[1e-6], [1e-2]]), want).tolist()
        [True, False]
    """
    apart = lengths((got - want).nan_to_num(0.0))
    size = lengths(want.nan_to_num(0.0))
    near = apart <= rounding_slack(want.dtype) * size + torch.finfo(want.dtype).tiny
    return near & (got.isfinite() == want.isfinite()).all(1)


def rows_changed(after: Tensor, before: Tensor) -> Tensor:
    """Return the rows, (B,) bool, that a second call of the same shape gives other values; NaN in both is no change.

    Kernels repeat themselves better at one shape than at two, so less counts as a change than for `rows_agree`.

    Args:
        after: f in the second call, (B, N).
        before: f in the first, likewise.

    Examples:
        >>> before = torch.ones(2, 3)
        >>> rows_changed(before + torch.tensor([[1e-6], [1e-4]]), before).tolist()
        [False, True]
    """
    same = (after == before) | (after.isnan() & before.isnan())
    apart = row_norms(torch.where(same, 0.0, after - before))
    return ~(apart <= ROUNDING * torch.finfo(after.dtype).eps * row_norms(before.nan_to_num()))
