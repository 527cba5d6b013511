"""How a map contracts at a point: spectrum, norm, transient growth, conditioning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deqlm.diagnostics.diagnosis.jacobian import Jacobian
from deqlm.diagnostics.diagnosis.krylov import arnoldi, dense, eigenvalue_size, largest_gain, smallest_gain
from deqlm_solvers import Map
from deqlm_solvers.core.norms import row_norms

__all__ = ["Contraction", "measure_contraction"]


@dataclass(frozen=True)
class Contraction:
    """The Jacobian of f at the solution, or at the best point known, per examined row.

    The spectral radius decides how fast plain iteration ends, the norm how far it may stray before: for a matrix that
    is not normal both are needed. Values by "arnoldi" are estimates; those by "dense" are exact up to rounding.

    Attributes:
        rows: which rows; (0,) stands for the whole batch when f mixes rows.
        at: "solution", or "best point" where nothing converged.
        method: "dense" (N products, eigenvalues) or "arnoldi".
        products: "exact", or "differences" where f has no derivative that can be used.
        radius: largest modulus of the (Ritz) eigenvalues.
        radius_error: residual of that Ritz pair, 0 for "dense"; no bound on the error unless J is normal.
        eigenvalue: (real, imaginary) of the eigenvalue of largest modulus, imaginary part >= 0.
        largest_real: largest real part of the (Ritz) eigenvalues; no damping helps plain iteration when it is >= 1.
        damped_radius: radius of (1 - beta) I + beta J for the best beta of .1, .2, ..., 1.
        norm: ||J||_2, from below; None without J^T.
        numerical_radius: largest |x* J x| over unit x, from below.
        growth: largest ||J^k v|| found over k <= 16 for the direction v that J stretches most.
        lipschitz: largest ||f(a) - f(b)|| / ||a - b|| found over pairs around the point, a hundredth of its size apart.
        kappa: ||(I - J)^-1||_2, exact for "dense", else from below.
        error: kappa times the residual: about the distance to the fixed point.
        relative_error: error / ||z||; infinite at zero, but 0 where the residual is 0.
        token_radius: largest radius of the diagonal token blocks (the worst row's), for causal maps; the true
            spectral radius when every token was examined.
        tokens: how many tokens that is the maximum over.
    """

    rows: tuple[int, ...]
    at: Literal["solution", "best point"]
    method: Literal["dense", "arnoldi"]
    products: Literal["exact", "differences"]
    radius: tuple[float, ...]
    radius_error: tuple[float, ...]
    eigenvalue: tuple[tuple[float, float], ...]
    largest_real: tuple[float, ...]
    damped_radius: tuple[float, ...]
    norm: tuple[float, ...] | None
    numerical_radius: tuple[float, ...]
    growth: tuple[float, ...]
    lipschitz: tuple[float, ...]
    kappa: tuple[float, ...]
    error: tuple[float, ...]
    relative_error: tuple[float, ...]
    token_radius: float | None = None
    tokens: int = 0


def measure_contraction(
    f: Map,
    J: Jacobian,
    residual: Tensor,
    *,
    at: Literal["solution", "best point"],
    krylov: int,
    most_dense: int,
    seed: int,
    tokens: Tensor | None = None,
) -> Contraction | None:
    """Measure; see `Contraction`. None where the Jacobian is not finite.

    Args:
        f: the map, (B, N).
        J: its Jacobian at the point, for the rows to examine.
        residual: (R,), of the examined rows.
        at: what the point is.
        krylov: steps of Arnoldi and of power iteration.
        most_dense: form the matrix when N is at most this.
        seed: of the random directions.
        tokens: (L, D) unknowns of each token, for causal maps.
    """
    count, unknowns = J.shape
    inner = torch.promote_types(J.z.dtype, torch.float32)
    draw = torch.Generator(device="cpu").manual_seed(seed)

    def start() -> Tensor:
        return torch.randn(count, unknowns, generator=draw, dtype=torch.float64, device="cpu").to(J.z.device, inner)

    is_dense = unknowns <= most_dense
    if is_dense:
        small = dense(J, inner)
        if not bool(small.isfinite().all()):
            return None
        remainder = torch.zeros(count, dtype=torch.float64, device=small.device)
        norm, direction = _svd_gain(small, inner)
        left_over = torch.linalg.svdvals(torch.eye(unknowns, dtype=torch.float64, device=small.device) - small)
        kappa = 1 / left_over[:, -1]
    else:
        small, remainder, _ = arnoldi(J.forward, start(), min(krylov, unknowns))
        if not bool(small.isfinite().all()):
            return None
        norm, direction = largest_gain(J, start(), krylov) if J.transposable else (None, start())
        kappa = smallest_gain(J, start(), rounds=8, evaluations=4 * krylov)
    values, vectors = torch.linalg.eig(small)
    leading = values.abs().argmax(1)
    pick = torch.arange(count, device=small.device)
    eigenvalue = values[pick, leading]
    ritz_error = remainder * vectors[pick, -1, leading].abs()
    shrink = torch.arange(1, 11, dtype=torch.float64, device=small.device) / 10
    damped = ((1 - shrink)[:, None, None] + shrink[:, None, None] * values).abs().amax(2).amin(0)
    matrix = small if is_dense else None
    token_radius, examined = (None, 0) if tokens is None else _token_radius(J, tokens, matrix, inner)
    size = row_norms(J.select(J.z))
    return Contraction(
        rows=tuple(J.rows.tolist()) if not J.joint else (0,),
        at=at,
        method="dense" if is_dense else "arnoldi",
        products="exact" if J.exact else "differences",
        radius=_floats(eigenvalue.abs()),
        radius_error=_floats(ritz_error),
        eigenvalue=tuple((v.real, abs(v.imag)) for v in eigenvalue.tolist()),
        largest_real=_floats(values.real.amax(1)),
        damped_radius=_floats(damped),
        norm=None if norm is None else _floats(norm),
        numerical_radius=_floats(_numerical_radius(small)),
        growth=_floats(_growth(J, direction)),
        lipschitz=_floats(_lipschitz(f, J, [start() for _ in range(4)] + [direction])),
        kappa=_floats(kappa),
        error=_floats(kappa * residual),
        relative_error=_floats(torch.where(residual == 0, 0.0, (kappa * residual / size).nan_to_num(torch.inf))),
        token_radius=token_radius,
        tokens=examined,
    )


def _svd_gain(matrix: Tensor, inner: torch.dtype) -> tuple[Tensor, Tensor]:
    _, gains, right = torch.linalg.svd(matrix)
    return gains[:, 0], right[:, 0].to(inner)


def _numerical_radius(matrix: Tensor, angles: int = 32) -> Tensor:
    """Return max over angles of the largest eigenvalue of the Hermitian part of e^(i angle) J, (R,)."""
    best = torch.zeros(len(matrix), dtype=torch.float64, device=matrix.device)
    for k in range(angles):
        turned = matrix * complex(math.cos(math.pi * k / angles), math.sin(math.pi * k / angles))
        best = torch.maximum(best, torch.linalg.eigvalsh((turned + turned.mH) / 2).abs().amax(1))
    return best


def _growth(J: Jacobian, direction: Tensor, powers: int = 16) -> Tensor:
    v = direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    most = torch.zeros(len(v), dtype=torch.float64, device=v.device)
    for _ in range(powers):
        v = J.forward(v)
        most = torch.maximum(most, torch.linalg.vector_norm(v, dim=1, dtype=torch.float64))
    return most


def _lipschitz(f: Map, J: Jacobian, directions: list[Tensor]) -> Tensor:
    """Return the largest quotient of differences over pairs of points on both sides of the point, (R,)."""
    z = J.z
    scale = row_norms(z)[:, None]
    scale = torch.where(scale > 0, scale, 1.0) * 0.01
    best = torch.zeros(J.shape[0], dtype=torch.float64, device=z.device)
    for direction in directions:
        shift = J.embed(direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True))
        shift = (scale * shift.double()).to(z.dtype)
        with torch.no_grad():
            apart = J.select((z + shift).double() - (z - shift).double())
            gained = J.select(f(z + shift).double() - f(z - shift).double())
        quotient = row_norms(gained) / row_norms(apart)
        best = torch.maximum(best, torch.where(quotient.isfinite(), quotient, torch.inf))
    return best


def _token_radius(
    J: Jacobian, tokens: Tensor, matrix: Tensor | None, inner: torch.dtype, most: int = 8
) -> tuple[float, int]:
    """Return the largest radius of the diagonal blocks dF_t/dz_t, and over how many tokens."""
    length, width = tokens.shape
    rows = J.shape[0]
    if matrix is not None:
        blocks = torch.stack([matrix[:, index][:, :, index] for index in tokens], dim=1)
        return eigenvalue_size(blocks), length
    chosen = sorted(
        {round(i) for i in torch.linspace(0, length - 1, min(most, length), dtype=torch.float32, device="cpu").tolist()}
    )
    largest = 0.0
    for t in chosen:

        def product(v: Tensor, index: Tensor = tokens[t]) -> Tensor:
            whole = torch.zeros(J.shape, dtype=inner, device=v.device)
            whole[:, index] = v
            return J.forward(whole)[:, index]

        first = torch.ones(rows, width, dtype=inner, device=J.z.device)
        first = first + torch.linspace(-0.5, 0.5, width, dtype=inner, device=J.z.device)
        block, *_ = arnoldi(product, first, min(width, 12))
        largest = max(largest, eigenvalue_size(block))
    return largest, len(chosen)


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(float(v) for v in values.tolist())
