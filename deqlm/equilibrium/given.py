"""What a call says of its rows, checked, and with one entry per row."""

from __future__ import annotations

import reprlib
import sys

import torch
from torch import Tensor

from deqlm.wrap.rows import Rows
from deqlm_solvers import Stop
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.kinds import require_state

__all__ = ["row_mask", "row_scale", "tokens_of"]


def tokens_of(stop: Stop, rows: Rows) -> int:
    """Return how many tokens one evaluation of a row takes, as far as ``stop`` looks at tokens; else 0."""
    return rows.row_shapes[0][stop.token_dim - rows.batch_dims] if stop.per == "token" else 0


def row_scale(scale: float | Tensor | None, rows: Rows, stop: Stop) -> Tensor | None:
    """Return the argument ``scale`` of a call as (B,) float64, or None.

    Raises:
        ValueError: no number, and not one value per row; or ``stop`` evaluates nothing.
    """
    if scale is None:
        return None
    require(stop.max_iter > 0, "scale", scale, "left away with Stop(max_iter=0), which tests nothing")
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


def row_mask(mask: Tensor, rows: Rows) -> Tensor:
    """Return the argument ``token_mask`` of a call as (B, L).

    Raises:
        TypeError, ValueError: no bool tensor of that shape.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"token_mask must be a bool tensor, True where a token counts, got {reprlib.repr(mask)}")
    require_state(mask, "token_mask")
    require(mask.dtype == torch.bool, "token_mask", mask.dtype, "bool, True where a token counts (token_mask.bool())")
    ok = mask.dim() == rows.batch_dims + 1 and mask.shape[:-1] == rows.batch_shape
    require(ok, "token_mask", tuple(mask.shape), f"the batch shape {tuple(rows.batch_shape)} and the tokens behind it")
    return mask.reshape(rows.count, mask.shape[-1])
