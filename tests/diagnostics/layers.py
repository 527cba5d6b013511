"""Layers of today's architectures that hand their argument on, z + F(z): none has a fixed point in reach."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH = 16


class Residual(nn.Module):
    """z + mlp(z)."""

    def __init__(self, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), act(), nn.Linear(32, WIDTH))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.mlp(z)


class PreNorm(nn.Module):
    """A GPT-2 block, or the layer of a ViT where it is not causal."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.causal = causal

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        ahead = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        y = self.ln_1(z)
        z = z + self.attention(y, y, y, key_padding_mask=mask, attn_mask=ahead, need_weights=False)[0]
        return z + self.mlp(self.ln_2(z))


class ResNetBlock(nn.Module):
    """relu(z + F(z)) on images of 4 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z + self.second(torch.relu(self.norm(self.first(z)))))


def tokens() -> Tensor:
    return torch.randn(3, 8, WIDTH)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "gpt2": (lambda: PreNorm(causal=True), tokens),
    "vit": (lambda: PreNorm(causal=False), tokens),
    "norm_first": (lambda: nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, norm_first=True), tokens),
    "two blocks": (lambda: nn.Sequential(PreNorm(causal=True), PreNorm(causal=True)), tokens),
    "mlp": (Residual, tokens),
    "mlp, bounded": (lambda: Residual(nn.Tanh), tokens),
    "rows": (Residual, lambda: torch.randn(3, WIDTH)),
    "resnet": (lambda: ResNetBlock().eval(), lambda: torch.randn(2, 4, 6, 6)),
}
"""Names to (layer, input)."""


def made(name: str) -> tuple[nn.Module, Tensor]:
    """Return the named layer and an input, the same every time."""
    torch.manual_seed(0)
    layer, x = LAYERS[name]
    return layer(), x()
