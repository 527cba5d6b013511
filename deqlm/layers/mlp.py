"""The feed-forward half of a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqlm.layers.context import NOTHING, Context
from deqlm.layers.noise import VariationalDropout
from deqlm.ops.checks import whole

__all__ = ["GatedMLP", "LlamaMLP"]


class LlamaMLP(nn.Module):
    """fc2(SiLU(w1 z) * w3 z), as in Llama.

    Args:
        d_model: width D of the state.
        d_hidden: width of the products; the paper's configurations have int(2 d_inner / 3).
        bias: give the three layers biases.
        dropout: probability of `deqlm.layers.VariationalDropout` on the output.

    Reference:
        Shazeer (2020), GLU variants improve transformer, arXiv 2002.05202, equation 6.

    Examples:
        >>> LlamaMLP(8, 16)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        *,
        bias: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        whole("d_model", d_model, 1)
        whole("d_hidden", d_hidden, 1)
        self.w1 = nn.Linear(d_model, d_hidden, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(d_hidden, d_model, bias=bias, device=device, dtype=dtype)
        self.w3 = nn.Linear(d_model, d_hidden, bias=bias, device=device, dtype=dtype)
        self.dropout = VariationalDropout(dropout, d_model)

    def forward(self, z: Tensor, context: Context | None = None) -> Tensor:
        """Return the output (B, L, D) at ``z`` (B, L, D)."""
        context = NOTHING if context is None else context
        hidden = F.silu(context.apply(self.w1, z)) * context.apply(self.w3, z)
        return context.apply(self.dropout, context.apply(self.fc2, hidden))


class GatedMLP(nn.Module):
    """fc2(y * SiLU(gate)) with [y | gate] = fc1 z, the paper's default where a backbone has an MLP.

    Args:
        d_model: width D of the state.
        d_hidden: width of the products, rounded up to a multiple of ``multiple_of``.
        multiple_of: see there.
        bias: give both layers biases.
        dropout: probability of `deqlm.layers.VariationalDropout` on the output.

    Examples:
        >>> GatedMLP(8, 100).fc1.weight.shape
        torch.Size([256, 8])
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        *,
        multiple_of: int = 128,
        bias: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("d_hidden", d_hidden), ("multiple_of", multiple_of)):
            whole(name, value, 1)
        hidden = -(-d_hidden // multiple_of) * multiple_of
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, d_model, bias=bias, device=device, dtype=dtype)
        self.dropout = VariationalDropout(dropout, d_model)

    def forward(self, z: Tensor, context: Context | None = None) -> Tensor:
        """Return the output (B, L, D) at ``z`` (B, L, D)."""
        context = NOTHING if context is None else context
        y, gate = context.apply(self.fc1, z).chunk(2, dim=-1)
        return context.apply(self.dropout, context.apply(self.fc2, y * F.silu(gate)))
