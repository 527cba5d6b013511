"""Text that every Python installation carries: the help pages of ``pydoc``, as bytes."""

from __future__ import annotations

from pydoc_data.topics import topics

import torch
from torch import Tensor

VALIDATION_SHARE = 0.1
VALIDATION_WINDOWS = 128


def load_bytes() -> tuple[Tensor, Tensor]:
    """Return the bytes to train on and the bytes to validate on, int64.

    The last tenth of the text is held out. Other Python versions carry slightly different pages.
    """
    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    data = torch.tensor(list(text))
    cut = round(len(data) * (1 - VALIDATION_SHARE))
    return data[:cut], data[cut:]


def windows(data: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return inputs and next-byte targets, (B, L) each, for windows that begin at ``starts`` (B,)."""
    rows = data[starts[:, None] + torch.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


class Batches:
    """Endless random windows; the same seed gives the same windows in the same order to every model.

    Args:
        data: bytes, (N,).
        batch: windows per step.
        length: bytes per window.
        seed: seed of the order.
    """

    def __init__(self, data: Tensor, batch: int, length: int, seed: int) -> None:
        self.data, self.batch, self.length = data, batch, length
        self.generator = torch.Generator().manual_seed(seed)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next inputs and targets, (B, L) each."""
        last = len(self.data) - self.length
        starts = torch.randint(last, (self.batch,), generator=self.generator)
        return windows(self.data, starts, self.length)


def validation_windows(data: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the windows on which every model is judged, spread evenly over ``data``; (W, L) each."""
    last = len(data) - length - 1
    starts = torch.linspace(0, last, VALIDATION_WINDOWS).long()
    return windows(data, starts, length)
