"""A byte-level language model of one transformer layer, used as it is or wrapped as implicit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import deqlm
from deqlm import Anderson, Implicit, Solution, Solve, Stop

FORWARD = Stop(max_iter=40, rtol=1e-3)
BACKWARD = Solve(Anderson(), Stop(max_iter=40, rtol=1e-3))


class ByteModel(nn.Module):
    """Embedding, one stock `nn.TransformerEncoderLayer`, linear head.

    With ``implicit`` the layer is wrapped: its output is the fixed point z = layer(z + u), with u the embedded text.
    Wrapping adds no parameter, and the same seed gives both models the same weights.

    Args:
        implicit: wrap the layer.
        width: features per position.
        heads: attention heads.
        length: longest text.
    """

    def __init__(self, *, implicit: bool, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer: nn.Module = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        if implicit:
            layer = deqlm.DEQ(layer, stop=FORWARD, gradient=Implicit(solve=BACKWARD), on_failure="ignore")
        self.implicit = implicit
        self.layer = layer
        self.head = nn.Linear(width, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, text: Tensor) -> tuple[Tensor, Solution | None]:
        """Return logits of the next byte, (B, L, 256), and how the solve went (None when there is none).

        Args:
            text: bytes, (B, L), int64.
        """
        length = text.shape[1]
        u = self.embedding(text) + self.position[:length]
        mask = self.mask[:length, :length]
        if self.implicit:
            z, sol = self.layer(u, src_mask=mask, is_causal=True, with_stats=True)
            return self.head(z), sol
        return self.head(self.layer(u, src_mask=mask, is_causal=True)), None
