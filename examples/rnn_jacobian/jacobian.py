"""The state-to-state Jacobian of one Mamba2 layer, implicit and explicit, in three ways."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

import deqlm
from deqlm.layers import Block, Mamba2, Mamba2Cache

EXACT = deqlm.Stop(max_iter=2000, rtol=1e-13)
GRADIENT = deqlm.Implicit(solve=deqlm.Solve(deqlm.Broyden(memory=60), EXACT))


class Token(NamedTuple):
    """What one token meets, batch 1: input x (1, 1, D), injected u (1, 1, U), window and state before it."""

    x: Tensor
    u: Tensor
    window: Tensor
    h: Tensor


class Layer(nn.Module):
    """z -> norm_f(block(z, u)) of one token on a cache: the map f of the paper for a single layer, float64.

    One head of width D with one state per feature, so that the SSM's state h is a vector of D numbers.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = Block(Mamba2(width, d_state=1, expand=1, headdim=width))
        self.norm_f = nn.RMSNorm(width, eps=1e-5)
        self.width = width
        self.double().requires_grad_(False)  # only the state is differentiated

    def draw(self) -> Token:
        """Return a random token: x and u normal, the window uniform in (0, 1), the state in (0, 2)."""
        window, h = self.block.empty_cache(1)
        x, u = torch.randn(1, 1, self.width).to(h), torch.randn(1, 1, self.block.d_inject).to(h)
        return Token(x, u, torch.rand_like(window), 2 * torch.rand_like(h))

    def f(self, z: Tensor, h: Tensor, u: Tensor | None, window: Tensor) -> Tensor:
        """Return f(z), (B, 1, D), with the state h (B, D) before the token."""
        return self.norm_f(self.block.forward_chunk(z, u, self._cache(h, window))[0])

    def next_state(self, z: Tensor, h: Tensor, u: Tensor | None, window: Tensor) -> Tensor:
        """Return the SSM's state after the token, (B, D): Lambda(z) h + fed(z)."""
        return self.block.forward_chunk(z, u, self._cache(h, window))[1].state.reshape(h.shape)

    def _cache(self, h: Tensor, window: Tensor) -> Mamba2Cache:
        return Mamba2Cache(window.expand(len(h), -1, -1), h.view(len(h), 1, self.width, 1))


def through_the_solve(layer: Layer, token: Token) -> tuple[Tensor, deqlm.Solution]:
    """Return dh_t/dh_{t-1} (D, D) by autograd through the fixed point, and how the solve went.

    The solve has D equal rows; row i gives the gradient of the i-th number of the next state.
    """
    rows = layer.width
    h = token.h.view(1, rows).repeat(rows, 1).requires_grad_()
    u = token.u.expand(rows, -1, -1)
    sol = deqlm.solve(
        lambda z, h: layer.f(z, h, u, token.window),
        torch.zeros(rows, 1, rows, dtype=h.dtype),
        args=(h,),
        solver=deqlm.Broyden(memory=60),
        stop=EXACT,
        gradient=GRADIENT,
        on_failure="raise",
    )
    after = layer.next_state(sol.z, h, u, token.window)
    return torch.autograd.grad(after.diagonal().sum(), h)[0], sol


def closed_form(layer: Layer, token: Token, z: Tensor) -> Tensor:
    """Return dh_t/dh_{t-1} (D, D) at the fixed point ``z`` (1, 1, D) by equation 10 of the paper.

    J_ij = d_ij Lambda + sum_k (dLambda/dz_k h_i + dfed_i/dz_k) dphi_k/dh_j, dphi/dh = (I - df/dz)^-1 df/dh.
    """
    h, u, window = token.h.view(1, -1), token.u, token.window

    def fed(z: Tensor) -> Tensor:
        return layer.next_state(z, torch.zeros_like(h), u, window).flatten()

    def decay(z: Tensor) -> Tensor:
        return layer.next_state(z, torch.ones_like(h), u, window).flatten() - fed(z)

    size = (layer.width, layer.width)
    f_z = jacobian(lambda z: layer.f(z, h, u, window), z).view(size)
    f_h = jacobian(lambda h: layer.f(z, h, u, window), h).view(size)
    phi_h = torch.linalg.solve(torch.eye(layer.width, dtype=h.dtype) - f_z, f_h)
    decay_z, fed_z = jacobian(decay, z).view(size), jacobian(fed, z).view(size)
    return torch.diag(decay(z)) + (decay_z * h.T + fed_z) @ phi_h


def explicit(layer: Layer, token: Token) -> Tensor:
    """Return dh_t/dh_{t-1} (D, D) of the same layer used once, on x and without injection."""
    h = token.h.view(1, -1)
    return jacobian(lambda h: layer.next_state(token.x, h, None, token.window), h).view(layer.width, layer.width)


def off_diagonal(J: Tensor) -> float:
    """Return the share of ``J`` off its diagonal, in the Frobenius norm."""
    return ((J - torch.diag(J.diagonal())).norm() / J.norm()).item()
