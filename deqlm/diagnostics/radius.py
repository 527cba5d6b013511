"""The spectral radius of a map's Jacobian per row, as a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqlm.diagnostics.diagnosis.krylov import arnoldi
from deqlm.wrap.rows import RowMap, Rows
from deqlm_solvers import Map
from deqlm_solvers.core.checks import whole

__all__ = ["spectral_radius", "spectral_radius_of"]


def spectral_radius(
    f: Callable[..., Any], z: Any, *args: Any, steps: int = 20, batch_dims: int | None = None
) -> Tensor:
    """Return the largest modulus of the eigenvalues of df/dz at ``z``, one per row.

    By Arnoldi's method on products J^T w, so complex pairs are seen, which a power iteration misses. It is exact up to
    rounding where ``steps`` reaches the unknowns of a row or an invariant space, and an estimate elsewhere, mostly from
    below. It draws its start from a generator of its own, and changes nothing.

    Args:
        f: map of the state, called as f(z, *args) once, with a graph; it should not mix rows.
        z: where, such as the solved point; a tensor or a tree of tensors.
        *args: further arguments of f.
        steps: products with J^T, >= 1; each costs one backward of f.
        batch_dims: leading dimensions that index rows, see `deqlm.solve`; 0 makes one problem of the batch.

    Returns:
        float64, of the batch shape, without a graph; NaN where the Jacobian of a row is not finite.

    Raises:
        ValueError: a number of steps below 1.

    Reference:
        W. E. Arnoldi (1951), The principle of minimized iterations in the solution of the matrix eigenvalue problem.

    Examples:
        >>> import torch
        >>> turn = torch.tensor([[0.0, -0.9], [0.9, 0.0]])
        >>> [round(r, 3) for r in spectral_radius(lambda z: z @ turn, torch.zeros(2, 2)).tolist()]
        [0.9, 0.9]
    """
    whole("steps", steps, 1)
    state = z.detach() if isinstance(z, Tensor) else z
    rows = Rows(state, batch_dims, "z")
    source = rows.z0.detach().clone().requires_grad_()
    if not source.numel():
        return torch.zeros(rows.batch_shape, dtype=torch.float64, device=rows.device)
    with torch.enable_grad():
        fz = RowMap(rows, f, args)(source)

    def product(w: Tensor) -> Tensor:
        if not fz.requires_grad:
            return torch.zeros_like(w)
        (pulled,) = torch.autograd.grad(fz, source, w, retain_graph=True, allow_unused=True)
        return torch.zeros_like(w) if pulled is None else pulled

    return spectral_radius_of(product, source.detach(), steps)[0].reshape(rows.batch_shape)


def spectral_radius_of(product: Map, z: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the spectral radius (B,), float64, and a direction (B, N) of the eigenvalue, the real part of its vector.

    Args:
        product: (B, N) to (B, N), linear row by row.
        z: any tensor like its argument.
        steps: products, at most N of them are made.
    """
    wide = torch.promote_types(z.dtype, torch.float32)
    draw = torch.Generator(device="cpu").manual_seed(0)
    start = torch.randn(z.shape, generator=draw, dtype=torch.float64, device="cpu").to(z.device, wide)
    small, _, basis = arnoldi(lambda v: product(v.to(z.dtype)).to(wide), start, min(steps, z.shape[1]))
    finite = small.isfinite().all(dim=(1, 2))
    # some libraries of linear algebra end the process on a matrix with NaN
    values, vectors = torch.linalg.eig(torch.where(finite[:, None, None], small, 0.0))
    top = values.abs().argmax(1)
    vector = vectors[torch.arange(len(top), device=top.device), :, top].real
    direction = (vector.to(wide)[:, None] @ basis)[:, 0].to(z.dtype)
    return torch.where(finite, values.abs().amax(1), torch.nan), direction
