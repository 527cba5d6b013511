"""Small batched algebra in float64 that never lets one bad row stop the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNED = 8
"""Systems are padded to a multiple of 8 numbers (64 bytes): BLAS rounds by the alignment of a matrix, which would
make a row's bits depend on its place in the batch."""

__all__ = ["finite_or_identity", "push_column", "push_row", "solve_general", "solve_leading"]


def push_column(products: Tensor, column: Tensor) -> Tensor:
    """Return products (B, M, M) of a history by age with a new pair in front: older entries move by one."""
    moved = torch.roll(products, (1, 1), (1, 2))
    moved[:, :, 0] = column
    return moved


def push_row(products: Tensor, row: Tensor) -> Tensor:
    """As `push_column`, with the products of the new pair in the first row."""
    moved = torch.roll(products, (1, 1), (1, 2))
    moved[:, 0] = row
    return moved


def solve_leading(matrix: Tensor, rhs: Tensor, least_pivot: float) -> Tensor:
    """Solve the leading part of scaled Gram systems: unknowns up to the first one that depends on those before it.

    A squared Cholesky pivot is the squared sine of the angle between a column and the span of the columns before it.
    The first pivot that is not above ``least_pivot``, and every unknown from there on, is left out and gets zero; so
    does a row whose matrix is not finite.

    Args:
        matrix: (B, M, M), float64, unit diagonal up to a ridge; only the lower triangle is read.
        rhs: (B, M), float64.
        least_pivot: smallest squared pivot that counts as independent, > 0.

    Returns:
        (B, M), float64.
    """
    unknowns = matrix.shape[-1]
    if extra := -unknowns % ALIGNED:
        # a padded pivot is zero and left out like any dependent one
        matrix, rhs = F.pad(matrix, (0, extra, 0, extra)), F.pad(rhs, (0, extra))
    size = matrix.shape[-1]
    factor, info = torch.linalg.cholesky_ex(finite_or_identity(matrix))
    pivots = factor.diagonal(dim1=1, dim2=2)
    # info is 0, or the number of the first pivot that failed: the pivots before it are good
    factored = (info[:, None] - 1) % (size + 1)
    good = (pivots.square() > least_pivot) & (torch.arange(size, device=matrix.device) < factored)
    left_out = good.cumprod(1) == 0
    pivots.masked_fill_(left_out, 1.0)
    # the inverse of a lower triangle and plain sums: other routes round by the place of a row in the batch
    inverse = torch.linalg.solve_triangular(
        factor, torch.eye(size, dtype=factor.dtype, device=factor.device), upper=False
    )
    half = (inverse * rhs[:, None]).sum(2).masked_fill(left_out, 0.0)
    x = (inverse * half[..., None]).sum(1)
    return torch.nan_to_num(x[:, :unknowns], nan=0.0, posinf=0.0, neginf=0.0)


def solve_general(matrix: Tensor, rhs: Tensor) -> Tensor:
    """Solve square systems by LU; unknowns of a row whose matrix is not finite or singular get zero.

    Shapes as `solve_leading`.
    """
    unknowns = matrix.shape[-1]
    matrix = finite_or_identity(matrix)
    if extra := -unknowns % ALIGNED:
        matrix, rhs = F.pad(matrix, (0, extra, 0, extra)), F.pad(rhs, (0, extra))
    matrix.diagonal(dim1=1, dim2=2)[:, unknowns:].fill_(1.0)
    x, _ = torch.linalg.solve_ex(matrix, rhs[..., None])
    return torch.nan_to_num(x[:, :unknowns, 0], nan=0.0, posinf=0.0, neginf=0.0)


def finite_or_identity(matrix: Tensor) -> Tensor:
    """Return the matrices (B, M, M) with those that hold a NaN or infinity replaced by the identity."""
    total = matrix.sum((1, 2), keepdim=True)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(total - total == 0, matrix, eye)
