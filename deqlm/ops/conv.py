"""Causal depthwise convolution over a window of earlier tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deqlm.ops.checks import require
from deqlm.ops.precision import wide

__all__ = ["called_conv", "causal_conv"]


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return y_t = bias + sum_k weight_k x_{t-W+1+k} per channel, and the window for the tokens that follow.

    A sum of W shifted products: on CPU as fast as ``F.conv1d`` for long inputs, faster for short ones, and without its
    slow path for float64. Half precision is summed in float32.

    Args:
        x: (B, L, C), L >= 1.
        weight: (C, 1, W), the layout of ``nn.Conv1d``.
        bias: (C,) or None.
        window: the W - 1 inputs before ``x``, (B, W - 1, C); None is zeros.

    Returns:
        y (B, L, C) in the dtype of ``x``, and the last W - 1 tokens of window and ``x`` together, (B, W - 1, C).

    Raises:
        ValueError: shapes that do not fit.

    Examples:
        >>> x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
        >>> y, window = causal_conv(x, torch.tensor([[[10.0, 1.0]]]), None)
        >>> y.flatten().tolist(), window.flatten().tolist()
        ([1.0, 12.0, 23.0], [3.0])
    """
    _, length, channels = x.shape
    taps = weight.shape[-1]
    require(weight.shape == (channels, 1, taps), "weight", tuple(weight.shape), f"of shape ({channels}, 1, W)")
    seen = _behind(window, x, taps)
    dtype = wide(x.dtype)
    inputs, weight = seen.to(dtype), weight.to(dtype)
    y = inputs[:, :length] * weight[:, 0, 0]
    for k in range(1, taps):
        y = torch.addcmul(y, inputs[:, k : k + length], weight[:, 0, k])
    if bias is not None:
        y = y + bias.to(dtype)
    return y.to(x.dtype), seen[:, length:]


def called_conv(
    conv: Callable[[Tensor], Tensor], taps: int, x: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `causal_conv` does, by a call of a layer.

    Args:
        conv: such as an ``nn.Conv1d`` of (B, C, L) with ``padding=taps - 1``.
        taps: W.
        x: as there.
        window: as there.

    Raises:
        ValueError: a window of another shape.
    """
    length = x.shape[1]
    seen = _behind(window, x, taps)
    y = conv(seen.transpose(1, 2)).transpose(1, 2)
    return y[:, taps - 1 : taps - 1 + length].to(x.dtype), seen[:, length:]


def _behind(window: Tensor | None, x: Tensor, taps: int) -> Tensor:
    """Return ``x`` behind the W - 1 inputs before it."""
    batch, _, channels = x.shape
    want = (batch, taps - 1, channels)
    if window is None:
        window = x.new_zeros(want)
    require(window.shape == want, "window", tuple(window.shape), f"of shape {want}")
    return torch.cat([window.to(x.dtype), x], dim=1)
