"""Monotone equilibria: a linear layer with exactly one equilibrium, and a splitting that finds it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deqlm.ops.checks import require, whole
from deqlm.wrap.once import once

__all__ = ["MonotoneLinear"]


class MonotoneLinear(nn.Module):
    """z = relu(W z + b) with a W for which exactly one z solves it, as the map of Peaceman-Rachford splitting.

    W = (1 - margin) I - A^T A + B - B^T, so that the symmetric part of I - W is at least ``margin``. The equation is
    not iterated on as it stands, which need not converge; the state is u, whose positive part is z, and the map is

        T(u) = (2 V - I) |u| + 2 alpha V b,   V = (I + alpha (I - W))^-1,

    which contracts by ||2 V - I|| < 1 for every margin > 0 and alpha > 0. V is computed once per call of a
    `deqlm.DEQ`, so an evaluation is one product with a matrix. `read` makes z of u.

    Args:
        width: unknowns N, the last dimension of u and b.
        margin: m > 0.
        alpha: step of the splitting, > 0; it changes the speed and not the solution.

    Raises:
        ValueError: a value outside its range.

    Reference:
        E. Winston, J. Z. Kolter (2020), Monotone operator equilibrium networks, NeurIPS, equations 10 and 12 and
        theorem 2; the reflected prox of relu is the absolute value.

    Examples:
        >>> import deqlm
        >>> layer = MonotoneLinear(6)
        >>> deq = deqlm.DEQ(layer, inject="argument")
        >>> b = torch.randn(4, 6)
        >>> z = layer.read(deq(b))
        >>> torch.allclose(z, torch.relu(z @ layer.weight.T + b), atol=1e-3)
        True
    """

    def __init__(self, width: int, *, margin: float = 0.1, alpha: float = 1.0) -> None:
        super().__init__()
        whole("width", width, 1)
        for name, value in (("margin", margin), ("alpha", alpha)):
            ok = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            require(ok, name, value, "> 0")
        self.width, self.margin, self.alpha = width, float(margin), float(alpha)
        scale = width**-0.5
        self.a = nn.Parameter(torch.randn(width, width) * scale)
        self.b = nn.Parameter(torch.randn(width, width) * scale)

    @property
    def weight(self) -> Tensor:
        """W, (N, N)."""
        eye = torch.eye(self.width, dtype=self.a.dtype, device=self.a.device)
        return (1 - self.margin) * eye - self.a.T @ self.a + self.b - self.b.T

    def resolvent(self) -> Tensor:
        """Return V, (N, N), once per call."""
        return once(self, (self.a, self.b), self._resolvent)

    def forward(self, u: Tensor, b: Tensor) -> Tensor:
        """Return T(u), of the shape of ``u`` (..., N).

        Args:
            u: state.
            b: injected input, (..., N).
        """
        v = self.resolvent()
        return 2 * torch.nn.functional.linear(u.abs() + self.alpha * b, v) - u.abs()

    def read(self, u: Tensor) -> Tensor:
        """Return z, the positive part of the state."""
        return torch.relu(u)

    def lipschitz_bound(self) -> float:
        """Return ||2 V - I||, by which the map contracts."""
        v = self._resolvent().detach().double()
        return float(torch.linalg.matrix_norm(2 * v - torch.eye(self.width, dtype=v.dtype, device=v.device), 2))

    def _resolvent(self) -> Tensor:
        eye = torch.eye(self.width, dtype=self.a.dtype, device=self.a.device)
        return torch.linalg.inv(eye + self.alpha * (eye - self.weight))

    def extra_repr(self) -> str:
        return f"width={self.width}, margin={self.margin}, alpha={self.alpha}"
