"""Products with the Jacobian of a map on rows at one point, for some of its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deqlm_solvers import Map

__all__ = ["Jacobian"]


class Jacobian:
    """J = df/dz at one point, row by row; products come from one evaluation of f with a graph.

    J v differentiates the transposed product. Where f has no second derivative, or cuts its graph, J v is a central
    difference; without a graph there is no J^T w.

    Args:
        f: map on rows (B, N).
        z: point, (B, N).
        rows: rows that vectors speak of, R of them; the tangents of the others are zero.
        joint: f mixes rows: the whole batch is one row of B N unknowns, and ``rows`` is not used.

    Attributes:
        shape: (R, N) of vectors, (1, B N) when ``joint``.
        exact: J v is exact up to rounding, no difference.
        transposable: J^T w is available.

    Examples:
        >>> import torch
        >>> A = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
        >>> J = Jacobian(lambda z: z @ A.T, torch.zeros(3, 2), rows=[1])
        >>> J.forward(torch.tensor([[0.0, 1.0]])).tolist(), J.transposed(torch.tensor([[1.0, 0.0]])).tolist()
        ([[2.0, 0.0]], [[0.0, 2.0]])
    """

    def __init__(self, f: Map, z: Tensor, rows: Sequence[int], joint: bool = False) -> None:
        self.f = f
        self.z = z.detach().clone()
        self.joint = joint
        self.rows = torch.tensor(list(rows), device=z.device, dtype=torch.long)
        self.shape = (1, z.numel()) if joint else (len(self.rows), z.shape[1])
        self.products = 0
        with torch.enable_grad():
            self.source = self.z.clone().requires_grad_()
            self.fz = f(self.source)
        self.transposable = self.fz.requires_grad
        self.exact = self._differentiable_twice()
        if not self.exact:
            with torch.no_grad():
                scale = torch.linalg.vector_norm(self.z, dim=1, dtype=torch.float64)
                step = torch.finfo(z.dtype).eps ** (1 / 3) * scale.clamp_min(1.0)
                self.step = (step.sum() if joint else step)[..., None]

    def forward(self, v: Tensor) -> Tensor:
        """Return J v, (R, N) in the dtype of ``v``."""
        self.products += 1
        tangent = self.embed(v)
        return self.select(self._pushed(tangent) if self.exact else self._difference(tangent)).to(v.dtype)

    def transposed(self, w: Tensor) -> Tensor:
        """Return J^T w, (R, N) in the dtype of ``w``."""
        self.products += 1
        return self.select(self.pulled(self.embed(w))).to(w.dtype)

    def pulled(self, w: Tensor) -> Tensor:
        """Return J^T w for all rows, (B, N), state dtype."""
        (jtw,) = torch.autograd.grad(self.fz, self.source, w, retain_graph=True, allow_unused=True)
        return torch.zeros_like(w) if jtw is None else jtw

    def _differentiable_twice(self) -> bool:
        if not self.transposable:
            return False
        with torch.enable_grad():
            self.w = torch.zeros_like(self.fz, requires_grad=True)
            try:
                (self.jtw,) = torch.autograd.grad(self.fz, self.source, self.w, create_graph=True, allow_unused=True)
                return self._products_agree()
            except RuntimeError:  # kernels such as fused attention have no second derivative
                return False

    def _products_agree(self) -> bool:
        """Say whether w . (J v) = (J^T w) . v for random v and w: a graph that ends early gives zeros and no error."""
        draw = torch.Generator(device="cpu").manual_seed(0)
        slack = max(1e-2 / math.sqrt(max(1, self.z.numel())), 4 * torch.finfo(self.z.dtype).eps)
        for _ in range(2):
            v, w = torch.randn(2, *self.z.shape, generator=draw, dtype=torch.float64, device="cpu").to(
                self.z.device, self.z.dtype
            )
            jv, jtw = self._pushed(v).double(), self.pulled(w).double()
            apart = (jv * w).sum() - (jtw * v).sum()
            if not bool(apart.abs() <= slack * (jtw.norm() * v.double().norm())):
                return False
        return True

    def _pushed(self, v: Tensor) -> Tensor:
        if self.jtw is None or not self.jtw.requires_grad:
            return torch.zeros_like(v)
        (jv,) = torch.autograd.grad(self.jtw, self.w, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if jv is None else jv

    def _difference(self, v: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(v, dtype=torch.float64) if self.joint else _lengths(v)[:, None]
        h = self.step / length.clamp_min(torch.finfo(torch.float64).tiny)
        with torch.no_grad():
            shift = (h * v.double()).to(v.dtype)
            return ((self.f(self.z + shift).double() - self.f(self.z - shift).double()) / (2 * h)).to(v.dtype)

    def embed(self, v: Tensor) -> Tensor:
        """Return vectors (R, N) as a tangent of the whole batch, (B, N), zero in other rows, state dtype."""
        v = v.to(self.z.dtype)
        if self.joint:
            return v.reshape(self.z.shape)
        return torch.zeros_like(self.z).index_copy(0, self.rows, v)

    def select(self, t: Tensor) -> Tensor:
        """Return what a (B, N) tensor holds for the rows that vectors speak of, (R, N)."""
        return t.reshape(self.shape) if self.joint else t.index_select(0, self.rows)


def _lengths(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=1, dtype=torch.float64)
