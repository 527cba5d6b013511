"""Small batched algebra in float64 that never lets one bad row stop the others."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["finite_or_identity", "solve_general", "solve_leading"]


def solve_leading(matrix: Tensor, rhs: Tensor, least_pivot: float) -> Tensor:
    """Solve the leading part of scaled Gram systems: unknowns up to the first one that depends on those before it.

    A Cholesky pivot is the squared sine of the angle between a column and the span of the columns before it. The first
    pivot that is not above ``least_pivot``, and every unknown from there on, is left out and gets zero; so does a row
    whose matrix is not finite.

    Args:
        matrix: (B, M, M), float64, symmetric, unit diagonal up to a ridge.
        rhs: (B, M), float64.
        least_pivot: smallest squared pivot that counts as independent, > 0.

    Returns:
        (B, M), float64.
    """
    size = matrix.shape[-1]
    factor, info = torch.linalg.cholesky_ex(finite_or_identity(matrix))
    order = torch.arange(size, device=matrix.device)
    factored = torch.where(info == 0, size, info - 1)
    independent = (factor.diagonal(dim1=1, dim2=2).square() > least_pivot) & (order < factored[:, None])
    kept = independent.long().cumprod(1).bool()
    block = kept[:, :, None] & kept[:, None, :]
    leading = torch.where(block, factor, torch.eye(size, dtype=factor.dtype, device=factor.device))
    x = torch.cholesky_solve(torch.where(kept, rhs, 0.0)[..., None], leading)[..., 0]
    return torch.where(x.isfinite(), x, 0.0)


def solve_general(matrix: Tensor, rhs: Tensor) -> Tensor:
    """Solve square systems by LU; rows whose matrix is not finite or singular get zero. Shapes as `solve_leading`."""
    x, info = torch.linalg.solve_ex(finite_or_identity(matrix), rhs[..., None])
    x = x[..., 0]
    return torch.where((info == 0)[:, None] & x.isfinite(), x, 0.0)


def finite_or_identity(matrix: Tensor) -> Tensor:
    """Return the matrices (B, M, M) with those that hold a NaN or infinity replaced by the identity."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    sound = matrix.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    return torch.where(sound, matrix, eye)
