"""The repeated part of known looped models as a map core(z, x), so that it can be solved, diagnosed and compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.deq import DEQ

__all__ = ["AttractorHead", "Core", "Sandwich", "TwoLevel"]


class Core(nn.Module, ABC):
    """The part of a looped model that is repeated: a map core(z, x) of its state z and the input x of the loop."""

    @abstractmethod
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the next state, in the shape of ``z``; ``x`` is what comes in from outside, the same every time."""

    @staticmethod
    def start(x: Tensor) -> Tensor:
        """Return where the loop starts; the default is zeros like ``x``."""
        return torch.zeros_like(x)

    def deq(self, **options: Any) -> DEQ:
        """Return the core as a `DEQ`, called with x, for `diagnose`, `audit_gradient` and the like.

        Args:
            **options: of `DEQ`, but for layer, inject and start.
        """
        return DEQ(self, inject="argument", start=self.start, **options)


class Sandwich(Core):
    """The core of Huginn's kind: an adapter joins state and input, blocks with norms on both sides follow.

    z' = norm(blocks(adapter([z, x]))).

    Args:
        adapter: maps (..., 2 D) to (..., D), as a linear layer.
        blocks: each called with the state and ``more``.
        norm: behind the blocks, or None.
        **more: keywords of the blocks, such as masks and positions.

    Reference:
        J. Geiping et al. (2025), Scaling up test-time compute with latent reasoning: a recurrent depth approach. Their
        loop starts at noise; this one at zeros, and any start can be given to the call.

    Examples:
        >>> core = Sandwich(nn.Linear(8, 4), [nn.Tanh()], nn.RMSNorm(4))
        >>> core.deq(on_failure="ignore")(torch.randn(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, adapter: nn.Module, blocks: list[nn.Module], norm: nn.Module | None = None, **more: Any) -> None:
        super().__init__()
        self.adapter, self.blocks, self.norm, self.more = adapter, nn.ModuleList(blocks), norm, more

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        z = self.adapter(torch.cat([z, x], dim=-1))
        for block in self.blocks:
            out = block(z, **self.more)
            z = out[0] if isinstance(out, tuple) else out
        return z if self.norm is None else self.norm(z)


class TwoLevel(Core):
    """The core of the tiny recursive models: an answer y and a latent l take turns in one small network.

    ``inner`` times l <- net(x + y + l), then y <- net(y + l). The state is [y, l], (..., 2 D). Equilibrium reasoners
    solve the same map until it stands still.

    Args:
        net: maps (..., D) to (..., D).
        inner: turns of the latent per evaluation.

    Reference:
        A. Jolicoeur-Martineau (2025), Less is more: recursive reasoning with tiny networks (TRM).

    Examples:
        >>> core = TwoLevel(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), inner=2)
        >>> core.deq(on_failure="ignore")(torch.randn(2, 3, 4)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(self, net: nn.Module, inner: int = 6) -> None:
        super().__init__()
        self.net, self.inner = net, inner

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        y, latent = z.chunk(2, dim=-1)
        for _ in range(self.inner):
            latent = self.net(x + y + latent)
        return torch.cat([self.net(y + latent), latent], dim=-1)

    @staticmethod
    def start(x: Tensor) -> Tensor:
        return torch.zeros_like(torch.cat([x, x], dim=-1))


class AttractorHead(Core):
    """The head of attractor models: a backbone proposes x, and the head moves it to a point that stands still.

    z' = head(z + x), from z = x.

    Args:
        head: maps (..., D) to (..., D).

    Reference:
        Attractor models (2026), arXiv 2605.12466.

    Examples:
        >>> core = AttractorHead(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        >>> core.deq(on_failure="ignore")(torch.randn(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.head(z + x)

    @staticmethod
    def start(x: Tensor) -> Tensor:
        return x
