"""Arnoldi and inverse iteration on rows: each row has its own matrix, known by products only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deqlm.diagnostics.diagnosis.jacobian import Jacobian
from deqlm_solvers import Anderson, Map, Solve, Stop

__all__ = ["arnoldi", "dense", "eigenvalue_size", "largest_gain", "smallest_gain"]


def arnoldi(product: Map, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Hessenberg matrices (R, m, m) and remainders (R,) of m steps, float64, and the basis (R, m, N).

    At a breakdown the rest of the matrix and of the basis is zero. Eigenvalues of a Hessenberg matrix (Ritz values) are
    those of the row's matrix when the remainder is zero, and an estimate otherwise: they lie in its numerical range,
    which for a matrix that is not normal can be far from its spectrum. Orthogonalised twice, as in C. W. Daniel,
    W. B. Gragg, L. Kaufman, G. W. Stewart (1976).

    Args:
        product: (R, N) to (R, N), linear row by row.
        start: (R, N), no row zero.
        steps: m >= 1, at most N.
    """
    rows, _ = start.shape
    basis = [_unit(start)[0]]
    hessenberg = torch.zeros(rows, steps + 1, steps, dtype=torch.float64, device=start.device)
    eps = torch.finfo(start.dtype).eps
    for j in range(steps):
        v = product(basis[j])
        size = torch.linalg.vector_norm(v, dim=1, dtype=torch.float64)
        known = torch.stack(basis, dim=1)  # (R, j + 1, N)
        for _ in range(2):
            overlap = (known @ v[:, :, None])[..., 0]
            v = v - (overlap[:, None] @ known)[:, 0]
            hessenberg[:, : j + 1, j] += overlap.double()
        v, length = _unit(v)
        ended = length <= 10 * eps * size
        hessenberg[:, j + 1, j] = torch.where(ended, 0.0, length)
        basis.append(torch.where(ended[:, None], 0.0, v))
    return hessenberg[:, :steps], hessenberg[:, steps, steps - 1], torch.stack(basis[:steps], dim=1)


def dense(J: Jacobian, dtype: torch.dtype) -> Tensor:
    """Return the Jacobian matrices (R, N, N) by N products, float64."""
    rows, unknowns = J.shape
    columns = []
    for i in range(unknowns):
        unit = torch.zeros(rows, unknowns, dtype=dtype, device=J.z.device)
        unit[:, i] = 1.0
        columns.append(J.forward(unit).double())
    return torch.stack(columns, dim=2)


def eigenvalue_size(matrices: Tensor) -> float:
    """Return the largest modulus of the eigenvalues of matrices (..., N, N), infinite where one is not finite.

    Some libraries of linear algebra end the process on a matrix with NaN.
    """
    if not bool(matrices.isfinite().all()):
        return math.inf
    return float(torch.linalg.eigvals(matrices).abs().max())


def largest_gain(J: Jacobian, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return ||J||_2 (R,) float64 and the direction (R, N) that it stretches most, from below.

    Power iteration on J^T J until the gain settles to a relative 1e-4, at most ``steps`` times.
    """
    v, _ = _unit(start)
    gain = torch.zeros(len(v), dtype=torch.float64, device=v.device)
    direction = v
    for _ in range(steps):
        stretched = J.forward(v)
        now = torch.linalg.vector_norm(stretched, dim=1, dtype=torch.float64)
        settled = bool((now <= gain * (1 + 1e-4)).all())
        direction = torch.where((now >= gain)[:, None], v, direction)
        gain = torch.maximum(gain, now)
        if settled:
            break
        v, _ = _unit(J.transposed(stretched))
    return gain, direction


def smallest_gain(J: Jacobian, start: Tensor, rounds: int, evaluations: int) -> Tensor:
    """Return kappa = ||(I - J)^-1||_2, (R,) float64, from below.

    Inverse iteration in a Krylov space: Arnoldi on (I - J)^-1 (I - J)^-T, whose products are two solves by Anderson
    acceleration, which is GMRES on a linear map. However badly the solves end, ||y|| / ||(I - J)^T y|| of the y that
    comes out bounds kappa from below. Without J^T plain inverse iteration takes its place.

    Args:
        J: Jacobian.
        start: (R, N), no row zero.
        rounds: Arnoldi steps, >= 1.
        evaluations: products per solve, at most.
    """
    how = Solve(Anderson(memory=25), Stop(max_iter=evaluations, rtol=0.0, atol=1e-4))

    def inverse(product: Map, b: Tensor) -> Tensor:
        b, length = _unit(b)
        x = how(lambda w: product(w) + b, b).z
        return torch.where(x.isfinite().all(1)[:, None], x, b) * length[:, None].to(x.dtype)

    if not J.transposable:
        x = start
        for _ in range(rounds):
            x, _ = _unit(inverse(J.forward, x))
        return _gain_of_inverse(J.forward, x)
    small, _, basis = arnoldi(lambda v: inverse(J.forward, inverse(J.transposed, v)), start, min(rounds, J.shape[1]))
    # whatever y this comes to bounds kappa, but no library is to see a NaN
    small = torch.where(small.isfinite().all((1, 2), keepdim=True), small, 0.0)
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    top = vectors[torch.arange(len(values), device=values.device), :, values.argmax(1)]
    left, _ = _unit((top.to(basis.dtype)[:, None] @ basis)[:, 0])
    left = torch.where(left.isfinite().all(1, keepdim=True), left, start)
    return _gain_of_inverse(J.transposed, inverse(J.transposed, left))


def _gain_of_inverse(product: Map, x: Tensor) -> Tensor:
    """Return ||x|| / ||x - product(x)||, (R,) float64."""
    x, _ = _unit(x)
    return 1 / torch.linalg.vector_norm(x - product(x), dim=1, dtype=torch.float64)


def _unit(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of length 1 (zero rows stay) and their former lengths, (R,) float64."""
    length = torch.linalg.vector_norm(v, dim=1, dtype=torch.float64)
    safe = torch.where(length > 0, length, 1.0)
    return (v / safe[:, None]).to(v.dtype), length
