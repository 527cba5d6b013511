"""The registered gradient methods, and matrices of known spectra."""

from __future__ import annotations

import torch
from torch import Tensor

import deqlm

NAMES = sorted(deqlm.GRADIENTS)
EXACT = [name for name in NAMES if deqlm.GRADIENTS[name].exact]


def symmetric(spectrum: list[float]) -> Tensor:
    """Return a symmetric float64 matrix with the given eigenvalues."""
    Q = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), dtype=torch.float64)).Q
    return Q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ Q.T
