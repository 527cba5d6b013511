"""Linear systems along a sequence in logarithmic depth: affine maps composed in a tree, and block cyclic reduction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deqlm_solvers.linalg.small_systems import finite_or_identity, solve_general
from deqlm_solvers.methods.deer.grid import Blocks

__all__ = ["affine_scan", "bidiagonal_product", "damped_step", "newton_step"]

WIDE = 32
"""Width from which a loop over tokens is faster on a CPU: it takes products with vectors, the tree those of matrices.

Milliseconds of the tree and the loop for 1024 tokens on one thread: 7 and 33 at width 16, 152 and 64 at width 64; of 8
rows 61 and 51 at width 16, 464 and 121 at width 32.
"""


def affine_scan(gain: Tensor, offset: Tensor) -> Tensor:
    """Return x with x_t = gain_t x_{t-1} + offset_t and x_{-1} = 0, by composing neighbouring maps in a tree.

    Composition of affine maps is associative, so the depth is log2 L where a loop over tokens has L; the work is that
    of one product of matrices and one with a vector per token. Wide maps on a CPU, where work counts, go by the loop.

    Args:
        gain: (B, L, ..., S, S).
        offset: (B, L, ..., S).

    Returns:
        (B, L, ..., S).

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
    if gain.shape[-1] >= WIDE and gain.device.type == "cpu":
        return _by_loop(gain, offset)
    before, after = gain[:, 0 : length - 1 : 2], gain[:, 1::2]
    odd = affine_scan(_matmul(after, before), _times(after, offset[:, 0 : length - 1 : 2]) + offset[:, 1::2])
    even = offset[:, 0::2].clone()
    even[:, 1:] += _times(gain[:, 2::2], odd[:, : even.shape[1] - 1])
    return _interleaved(even, odd)


def _by_loop(gain: Tensor, offset: Tensor) -> Tensor:
    gains, offsets = gain.unbind(1), offset.unbind(1)
    x = [offsets[0]]
    for one, more in zip(gains[1:], offsets[1:], strict=True):
        x.append(more + _times(one, x[-1]))
    return torch.stack(x, 1)


def bidiagonal_product(blocks: Blocks, x: Tensor) -> Tensor:
    """Return (I - A) x, (B, L, G, S).

    Args:
        blocks: of A.
        x: (B, L, G, S).
    """
    out = x.clone()
    if blocks.own is not None:
        out -= _times(blocks.own, x)
    if blocks.before is not None:
        out[:, 1:] -= _times(blocks.before[:, 1:], x[:, :-1])
    return out


def newton_step(blocks: Blocks, r: Tensor) -> Tensor:
    """Solve (I - A) x = r by forward substitution in the form of a scan; a singular row gets an x that does not.

    Args:
        blocks: of A.
        r: (B, L, G, S), float64.

    Returns:
        (B, L, G, S).
    """
    own, before = blocks
    if own is None:
        return r if before is None else affine_scan(before, r)
    system = _identity_like(own) - own
    if before is None or r.shape[1] == 1:
        return _solve_vector(system, r)
    solved = _solve(system, torch.cat([before, r[..., None]], dim=-1))
    return affine_scan(solved[..., :-1], solved[..., -1])


def damped_step(blocks: Blocks, r: Tensor, damping: Tensor) -> Tensor:
    """Return the x that minimises ||(I - A) x - r||^2 + damping ||x||^2.

    Its normal equations are block tridiagonal and symmetric positive definite. They are solved by odd-even reduction,
    whose depth is log2 L like that of a scan.

    Args:
        blocks: of A.
        r: (B, L, G, S), float64.
        damping: (B,), float64, > 0.

    Returns:
        (B, L, G, S).

    Reference:
        X. Gonzalez et al. (2024), Towards scalable and stable parallelization of nonlinear RNNs, NeurIPS, section 4
        (ELK). Deviates: blocks on the diagonal, because token t of an implicit map sees its own state; solved as the
        normal equations, which the Kalman smoother of the paper solves too.
    """
    own, before = blocks
    held = damping[:, None, None, None, None]
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    own = eye.expand(*r.shape, r.shape[-1]) if own is None else eye - own
    adjoint = own.mT
    diagonal, rhs = _matmul(adjoint, own), _times(adjoint, r)
    diagonal = diagonal + held * eye
    if before is None:
        return _solve_vector(diagonal, rhs)
    before = before[:, 1:]
    diagonal[:, :-1] += _matmul(before.mT, before)
    rhs[:, :-1] -= _times(before.mT, r[:, 1:])
    lower = F.pad(-_matmul(adjoint[:, 1:], before), (0, 0, 0, 0, 0, 0, 1, 0))
    return _tridiagonal(diagonal, lower, rhs)


def _tridiagonal(diagonal: Tensor, lower: Tensor, rhs: Tensor) -> Tensor:
    """Solve lower_t x_{t-1} + diagonal_t x_t + lower_{t+1}^T x_{t+1} = rhs_t: tokens 0, 2, ... first, in the others.

    Args:
        diagonal: (B, L, G, S, S).
        lower: likewise; lower_0 is zero.
        rhs: (B, L, G, S).
    """
    length, width = rhs.shape[1], rhs.shape[-1]
    if length == 1:
        return _solve_vector(diagonal, rhs)
    odds = length // 2
    upper = _padded(lower[:, 1:], 1).mT
    columns = torch.cat([lower[:, 0::2], upper[:, 0::2], rhs[:, 0::2, ..., None]], dim=-1)
    left, right, own = _solve(diagonal[:, 0::2], columns).split([width, width, 1], dim=-1)
    down, up = lower[:, 1::2], upper[:, 1::2]
    # an odd token has an even one before it, and one behind it unless it is the last
    left_behind, own_behind = (_padded(t, odds + 1 - t.shape[1])[:, 1:] for t in (left, own))
    reduced = diagonal[:, 1::2] - _matmul(down, right[:, :odds]) - _matmul(up, left_behind)
    # the odd token before, seen through the even one between
    further = -_matmul(down, left[:, :odds])
    odd = _tridiagonal(
        reduced, further, rhs[:, 1::2] - _times(down, own[:, :odds, ..., 0]) - _times(up, own_behind[..., 0])
    )
    even = own[..., 0].clone()
    even[:, :odds] -= _times(right[:, :odds], odd)
    even[:, 1:] -= _times(left[:, 1:], odd[:, : even.shape[1] - 1])
    return _interleaved(even, odd)


def _padded(t: Tensor, tokens: int) -> Tensor:
    """Return (B, L, G, S, K) with so many tokens of zeros behind."""
    return F.pad(t, (0, 0, 0, 0, 0, 0, 0, tokens))


def _solve(system: Tensor, columns: Tensor) -> Tensor:
    """Return system^-1 columns, (B, L, G, S, K); the answer of a singular or infinite system means nothing."""
    if system.shape[-1] == 1:
        return columns / system
    flat = finite_or_identity(system.flatten(0, -3))
    solved, _ = torch.linalg.solve_ex(_twice(flat), _twice(columns.flatten(0, -3)))
    return solved[: flat.shape[0]].reshape(columns.shape)


def _solve_vector(system: Tensor, rhs: Tensor) -> Tensor:
    """Return system^-1 rhs, (B, L, G, S); zero where a system is singular or infinite."""
    if system.shape[-1] == 1:
        return torch.nan_to_num(rhs / system[..., 0], nan=0.0, posinf=0.0, neginf=0.0)
    return solve_general(system.flatten(0, -3), rhs.flatten(0, -2)).reshape(rhs.shape)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a b for matrices (..., S, S), each with the bits that it has in any batch."""
    if a.shape[-1] == 1:
        return a * b
    flat = torch.bmm(_twice(a.flatten(0, -3)), _twice(b.flatten(0, -3)))
    return flat[: a[..., 0, 0].numel()].reshape(*a.shape[:-1], b.shape[-1])


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the products of matrices (..., S, S) with vectors (..., S), by plain sums: BLAS rounds by the batch."""
    if matrix.shape[-1] == 1:
        return matrix[..., 0] * vector
    return (matrix * vector[..., None, :]).sum(-1)


def _twice(batch: Tensor) -> Tensor:
    """Return a batch of one twice: BLAS has other kernels, and other bits, for one matrix alone."""
    return batch.expand(2, -1, -1) if batch.shape[0] == 1 else batch


def _identity_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """Return even_0, odd_0, even_1, ... along dimension 1."""
    joined = even.new_empty(even.shape[0], even.shape[1] + odd.shape[1], *even.shape[2:])
    joined[:, 0::2], joined[:, 1::2] = even, odd
    return joined
