"""Images that ask for two scales at once: a large shape, filled with a fine pattern, in noise."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE = 16
SHAPES = ("square", "cross", "frame")
PATTERNS = ("rows", "columns")
CLASSES = len(SHAPES) * len(PATTERNS)
NOISE = 0.3


def draw_images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images (count, 1, SIDE, SIDE) and labels (count,): ``shape * len(PATTERNS) + pattern``.

    The shape, 4 to 6 pixels from its centre to its edge, stands anywhere within the image. Its pattern has lines of one
    pixel, +1 and -1, which are gone from the image at half the resolution; the rest is 0. Noise is on everything.
    """
    label = torch.randint(CLASSES, (count,), generator=generator)
    shape, pattern = label // len(PATTERNS), label % len(PATTERNS)
    radius = 4 + 2 * torch.rand(count, 1, 1, generator=generator)
    room = SIDE - 1 - 2 * radius
    y, x = (radius + room * torch.rand(count, 1, 1, generator=generator) for _ in range(2))
    place = torch.arange(SIDE, dtype=torch.float32)
    dy, dx = (place[:, None] - y).abs(), (place - x).abs()
    inside = torch.stack(_masks(dy, dx, radius))
    inside = inside[shape, torch.arange(count)]
    phase = torch.randint(2, (count, 1, 1), generator=generator)
    lines = torch.where(pattern[:, None, None] == 0, place[:, None], place)
    image = inside * (1 - 2 * ((lines + phase) % 2))
    return (image + NOISE * torch.randn(image.shape, generator=generator))[:, None], label


def _masks(dy: Tensor, dx: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the square, the cross and the frame are, from distances (count, SIDE or 1, SIDE or 1)."""
    farther, nearer = torch.maximum(dy, dx), torch.minimum(dy, dx)
    whole = farther <= radius
    return farther <= 0.9 * radius, whole & (nearer <= 1.5), whole & (farther > radius - 2)
