"""The gated normalisation of Mamba2; everywhere else RMSNorm is torch's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deqlm.ops.checks import require
from deqlm.ops.norm import gated_rms_norm

__all__ = ["GatedRMSNorm"]


class GatedRMSNorm(nn.Module):
    """RMSNorm over groups of features, of y SiLU(gate), or of y with the gate behind it; at least float32 inside.

    Args:
        width: features.
        groups: parts that are normalised each on its own.
        eps: added to the mean square.
        norm_before_gate: normalise y alone, then multiply by SiLU(gate).

    Examples:
        >>> norm = GatedRMSNorm(4, groups=2)
        >>> norm(torch.tensor([3.0, 3.0, 5.0, 5.0]), torch.full((4,), 9.0)).round(decimals=3).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        width: int,
        *,
        groups: int = 1,
        eps: float = 1e-5,
        norm_before_gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require(groups >= 1 and width % groups == 0, "groups", groups, f"a divisor of the width {width}")
        self.groups, self.eps, self.norm_before_gate = groups, eps, norm_before_gate
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """Return the normalised ``y`` in its dtype; ``y`` and ``gate`` are (..., width)."""
        options = {"groups": self.groups, "eps": self.eps, "gate_last": self.norm_before_gate}
        return gated_rms_norm(y, gate, self.weight, **options)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, groups={self.groups}, norm_before_gate={self.norm_before_gate}"
