"""What Mamba2 does between its two projections: convolution, scan, gate and normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deqlm.ops import ssd
from deqlm.ops.conv import causal_conv
from deqlm.ops.norm import gated_rms_norm
from deqlm.ops.precision import wide

__all__ = ["InnerParameters", "InnerSizes", "decay_rates", "inner"]


class InnerSizes(NamedTuple):
    """Sizes and choices, by the names of `deqlm.layers.Mamba2`.

    Attributes:
        mlp: inner features beside the SSM, M.
        norm: whether the gated output is normalised, with ``eps``.
        gate_last: whether the gate comes behind the normalisation.
    """

    heads: int
    headdim: int
    groups: int
    state: int
    taps: int
    mlp: int
    norm: bool
    gate_last: bool
    eps: float
    dt_limit: tuple[float, float]

    @property
    def ssm(self) -> int:
        """Features that go through the SSM, H P."""
        return self.heads * self.headdim

    @property
    def channels(self) -> int:
        """Of the convolution, C."""
        return self.ssm + 2 * self.groups * self.state

    @property
    def inputs(self) -> int:
        """Of a token, U."""
        return 2 * self.mlp + self.ssm + self.channels + self.heads


class InnerParameters(NamedTuple):
    """Parameters, with the shapes and the meaning that they have in `deqlm.layers.Mamba2`.

    Attributes:
        conv_weight: (C, 1, W); not read where something else convolves.
        conv_bias: (C,) or None.
        dt_bias: (H,).
        A_log: (H,).
        D: (H,) or (H P,).
        norm_weight: (H P,) or None.
    """

    conv_weight: Tensor
    conv_bias: Tensor | None
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    norm_weight: Tensor | None


def inner(
    sizes: InnerSizes,
    projected: Tensor,
    mask: Tensor | None,
    window: Tensor | None,
    state: Tensor | None,
    parameters: InnerParameters,
    *,
    chunk_size: int | None = None,
    impl: ssd.Impl = "auto",
    conv: Callable[..., tuple[Tensor, Tensor]] | None = None,
    norm: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the input of the output projection, (B, L, M + H P), and window and state behind the tokens.

    Args:
        sizes: of the layer.
        projected: [MLP gate, MLP value | gate | x, B, C | dt] with the injected input, zero at padding, (B, L, U).
        mask: (B, L) bool, False at padding, or None.
        window: inputs of the convolution before these tokens, (B, W - 1, C); None is zeros.
        state: (B, H, P, N); None is zero.
        parameters: of the layer.
        chunk_size: see `deqlm.ops.ssd.scan`.
        impl: likewise.
        conv: what takes x (B, L, C) and ``window`` to y and the next window, in place of the parameters' convolution.
        norm: what gates and normalises, in place of the parameters' norm.
    """
    p, maps = parameters, sizes.groups * sizes.state
    parts = [sizes.mlp, sizes.mlp, sizes.ssm, sizes.channels, sizes.heads]
    mlp_gate, mlp, gate, xBC, dt = projected.split(parts, dim=-1)
    convolve = partial(causal_conv, weight=p.conv_weight, bias=p.conv_bias) if conv is None else conv
    xBC, window = convolve(xBC, window=window)
    x, B, C = F.silu(xBC).split([sizes.ssm, maps, maps], dim=-1)
    y, state = ssd.scan(
        x.unflatten(-1, (sizes.heads, sizes.headdim)),
        _step_sizes(dt, p.dt_bias, sizes.dt_limit, mask),
        decay_rates(p.A_log),
        B.unflatten(-1, (sizes.groups, sizes.state)),
        C.unflatten(-1, (sizes.groups, sizes.state)),
        D=p.D if p.D.numel() == sizes.heads else p.D.view(sizes.heads, sizes.headdim),
        initial_state=state,
        chunk_size=chunk_size,
        impl=impl,
    )
    y = y.flatten(-2).to(projected.dtype)
    if norm is not None:
        y = norm(y, gate)
    elif p.norm_weight is None:
        y = y * F.silu(gate)
    else:
        options = {"groups": sizes.groups, "eps": sizes.eps, "gate_last": sizes.gate_last}
        y = gated_rms_norm(y, gate, p.norm_weight, **options)
    return torch.cat([F.silu(mlp_gate) * mlp, y], dim=-1) if sizes.mlp else y, window, state


def decay_rates(A_log: Tensor) -> Tensor:
    """Return A = -exp(A_log), (H,), float32 or wider."""
    return -A_log.to(wide(A_log.dtype)).exp()


def _step_sizes(dt: Tensor, bias: Tensor, limit: tuple[float, float], mask: Tensor | None) -> Tensor:
    """Return step sizes (B, L, H), float32 or wider."""
    dtype = wide(dt.dtype)
    dt = F.softplus(dt.to(dtype) + bias.to(dtype))
    dt = dt if limit == (0.0, math.inf) else dt.clamp(*limit)
    # zero after softplus: a token of padding neither decays the state nor feeds it
    return dt if mask is None else torch.where(mask[..., None], dt, dt.new_zeros(()))
