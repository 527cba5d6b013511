"""Linear systems along a sequence in logarithmic depth: affine maps composed in a tree, and block cyclic reduction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deqlm_solvers.linalg.small_systems import finite_or_identity, solve_general

__all__ = ["affine_scan", "bidiagonal_product", "damped_step", "newton_step"]


def affine_scan(gain: Tensor, offset: Tensor) -> Tensor:
    """Return x with x_t = gain_t x_{t-1} + offset_t and x_{-1} = 0, by composing neighbouring maps in a tree.

    Composition of affine maps is associative, so the depth is log2 L where a loop over tokens has L; the work is that
    of about two loops with products of matrices in place of products with vectors.

    Args:
        gain: (B, L, D, D).
        offset: (B, L, D).

    Returns:
        (B, L, D).

    Reference:
        G. E. Blelloch (1990), Prefix sums and their applications, section 1.4 (first-order recurrences).

    Examples:
        >>> halves = torch.full((1, 5, 1, 1), 0.5)
        >>> affine_scan(halves, torch.ones(1, 5, 1)).flatten().tolist()
        [1.0, 1.5, 1.75, 1.875, 1.9375]
    """
    length = offset.shape[1]
    if length <= 1:
        return offset
    before, after = gain[:, 0 : length - 1 : 2], gain[:, 1::2]
    odd = affine_scan(after @ before, _times(after, offset[:, 0 : length - 1 : 2]) + offset[:, 1::2])
    even = offset[:, 0::2].clone()
    even[:, 1:] += _times(gain[:, 2::2], odd[:, : even.shape[1] - 1])
    return _interleaved(even, odd)


def bidiagonal_product(blocks: Tensor, x: Tensor) -> Tensor:
    """Return (I - A) x for the blocks A_t,t-k of every lag k, (B, L, D).

    Args:
        blocks: (lags + 1, B, L, D, D); those of lag k that would lie before the first token are zero.
        x: (B, L, D).
    """
    length, out = x.shape[1], x.clone()
    for lag, block in enumerate(blocks):
        out[:, lag:] -= _times(block[:, lag:], x[:, : max(0, length - lag)])
    return out


def newton_step(blocks: Tensor, r: Tensor) -> Tensor:
    """Solve (I - A) x = r by forward substitution in the form of a scan; a singular row gets an x that does not.

    Args:
        blocks: A, as for `bidiagonal_product`, of lags 0 and at most 1, float64.
        r: (B, L, D), float64.

    Returns:
        (B, L, D).
    """
    system = _identity_like(blocks[0]) - blocks[0]
    if blocks.shape[0] == 1 or r.shape[1] == 1:
        return solve_general(system.flatten(0, 1), r.flatten(0, 1)).reshape(r.shape)
    solved = _solve(system, torch.cat([blocks[1], r[..., None]], dim=3))
    return affine_scan(solved[..., :-1], solved[..., -1])


def damped_step(blocks: Tensor, r: Tensor, damping: Tensor) -> Tensor:
    """Return the x that minimises ||(I - A) x - r||^2 + damping ||x||^2.

    Its normal equations are block tridiagonal and symmetric positive definite. They are solved by odd-even reduction,
    whose depth is log2 L like that of a scan.

    Args:
        blocks: A, as for `newton_step`.
        r: (B, L, D), float64.
        damping: (B,), float64, > 0.

    Returns:
        (B, L, D).

    Reference:
        X. Gonzalez et al. (2024), Towards scalable and stable parallelization of nonlinear RNNs, NeurIPS, section 4
        (ELK). Deviates: blocks on the diagonal, because token t of an implicit map sees its own state; solved as the
        normal equations, which the Kalman smoother of the paper solves too.
    """
    own = _identity_like(blocks[0]) - blocks[0]
    adjoint = own.mT
    diagonal, rhs = adjoint @ own, _times(adjoint, r)
    diagonal += damping[:, None, None, None] * _identity_like(own)
    if blocks.shape[0] == 1:
        return solve_general(diagonal.flatten(0, 1), rhs.flatten(0, 1)).reshape(r.shape)
    before = blocks[1][:, 1:]
    diagonal[:, :-1] += before.mT @ before
    rhs[:, :-1] -= _times(before.mT, r[:, 1:])
    lower = F.pad(-adjoint[:, 1:] @ before, (0, 0, 0, 0, 1, 0))
    return _tridiagonal(diagonal, lower, rhs)


def _tridiagonal(diagonal: Tensor, lower: Tensor, rhs: Tensor) -> Tensor:
    """Solve lower_t x_{t-1} + diagonal_t x_t + lower_{t+1}^T x_{t+1} = rhs_t: tokens 0, 2, ... first, in the others.

    Args:
        diagonal: (B, L, D, D).
        lower: likewise; lower_0 is zero.
        rhs: (B, L, D).
    """
    length, width = rhs.shape[1:]
    if length == 1:
        return solve_general(diagonal.flatten(0, 1), rhs.flatten(0, 1)).reshape(rhs.shape)
    odds = length // 2
    upper = F.pad(lower[:, 1:], (0, 0, 0, 0, 0, 1)).mT
    columns = torch.cat([lower[:, 0::2], upper[:, 0::2], rhs[:, 0::2, :, None]], dim=3)
    left, right, own = _solve(diagonal[:, 0::2], columns).split([width, width, 1], dim=3)
    down, up = lower[:, 1::2], upper[:, 1::2]
    # an odd token has an even one before it, and one behind it unless it is the last
    more = (0, 0, 0, 0, 0, odds + 1 - left.shape[1])
    left_behind, own_behind = (F.pad(t, more)[:, 1:] for t in (left, own))
    reduced = diagonal[:, 1::2] - down @ right[:, :odds] - up @ left_behind
    # the odd token before, seen through the even one between
    further = -down @ left[:, :odds]
    odd = _tridiagonal(reduced, further, rhs[:, 1::2] - (down @ own[:, :odds] + up @ own_behind)[..., 0])
    even = own[..., 0].clone()
    even[:, :odds] -= _times(right[:, :odds], odd)
    even[:, 1:] -= _times(left[:, 1:], odd[:, : even.shape[1] - 1])
    return _interleaved(even, odd)


def _solve(system: Tensor, columns: Tensor) -> Tensor:
    """Return system^-1 columns, (B, L, D, K); the answer of a singular or infinite system means nothing."""
    n = system.shape[:2]
    solved, _ = torch.linalg.solve_ex(finite_or_identity(system.flatten(0, 1)), columns.flatten(0, 1))
    return solved.unflatten(0, n)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _identity_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """Return even_0, odd_0, even_1, ... along dimension 1."""
    joined = even.new_empty(even.shape[0], even.shape[1] + odd.shape[1], *even.shape[2:])
    joined[:, 0::2], joined[:, 1::2] = even, odd
    return joined
