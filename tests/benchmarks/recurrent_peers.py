"""The algorithms of DEER and ParaRNN as their papers write them, in plain torch: what `Deer` is timed against."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["deer", "pararnn"]

Cell = Callable[[Tensor, Tensor], Tensor]
"""One step for many tokens at once: states (T, D) and inputs (T, I) to the next states (T, D)."""


def deer(cell: Cell, x: Tensor, width: int, tol: float, most: int = 100) -> tuple[Tensor, int]:
    """Lim et al. (2024), equations 3 to 5: linearise at all tokens, h_t = J_t h_{t-1} + b_t, and scan, until h stands.

    Args:
        cell: the step.
        x: inputs, (B, L, I).
        width: D.
        tol: largest change of a number at which to stop.
        most: steps.

    Returns:
        States (B, L, D), and steps taken.
    """
    rows, tokens = x.shape[:2]
    h = torch.zeros(rows, tokens, width, dtype=x.dtype)
    inputs = x.flatten(0, 1)
    jacobian = torch.vmap(torch.func.jacfwd(lambda h, x: cell(h[None], x[None])[0]))
    steps = 0
    while steps < most:
        steps += 1
        before = F.pad(h[:, :-1], (0, 0, 1, 0)).flatten(0, 1)
        J = jacobian(before, inputs)
        b = cell(before, inputs) - (J @ before[..., None])[..., 0]
        _, new = _associative(J.unflatten(0, (rows, tokens)), b.unflatten(0, (rows, tokens)))
        change = (new - h).abs().max()
        h = new
        if change <= tol:
            break
    return h, steps


def _associative(gain: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The scan of affine maps (B, L, D, D), (B, L, D) by neighbours, with all prefixes composed."""
    length = offset.shape[1]
    if length < 2:
        return gain, offset
    first, second = slice(0, length - 1, 2), slice(1, None, 2)
    pairs = _then(gain[:, first], offset[:, first], gain[:, second], offset[:, second])
    odd_gain, odd = _associative(*pairs)
    rest = (length - 1) // 2
    even_gain, even = _then(odd_gain[:, :rest], odd[:, :rest], gain[:, 2::2], offset[:, 2::2])
    gains, offsets = torch.empty_like(gain), torch.empty_like(offset)
    gains[:, 0], offsets[:, 0] = gain[:, 0], offset[:, 0]
    gains[:, 1::2], offsets[:, 1::2] = odd_gain, odd
    gains[:, 2::2], offsets[:, 2::2] = even_gain, even
    return gains, offsets


def _then(gain: Tensor, offset: Tensor, later_gain: Tensor, later_offset: Tensor) -> tuple[Tensor, Tensor]:
    return later_gain @ gain, (later_gain @ offset[..., None])[..., 0] + later_offset


def pararnn(cell: Cell, slope: Cell, x: Tensor, width: int, tol: float, most: int = 100) -> tuple[Tensor, int]:
    """Danieli et al. (2025), section 3: Newton on h_t - f(h_{t-1}, x_t) = 0 with a diagonal Jacobian known in formulas.

    Each correction solves the bidiagonal system by doubling: after k rounds a token has seen 2^k before it.

    Args:
        cell: the step.
        slope: the diagonal of its Jacobian, likewise.
        x: inputs, (B, L, I).
        width: D.
        tol: largest correction of a number at which to stop.
        most: steps.

    Returns:
        States (B, L, D), and steps taken.
    """
    rows, tokens = x.shape[:2]
    inputs = x.flatten(0, 1)
    h = torch.zeros(rows, tokens, width, dtype=x.dtype)
    steps = 0
    while steps < most:
        steps += 1
        before = F.pad(h[:, :-1], (0, 0, 1, 0)).flatten(0, 1)
        change = cell(before, inputs).view_as(h) - h
        gain = slope(before, inputs).view_as(h)
        reach = 1
        while reach < tokens:
            more = torch.cat([change[:, :reach], change[:, reach:] + gain[:, reach:] * change[:, :-reach]], 1)
            gain = torch.cat([gain[:, :reach], gain[:, reach:] * gain[:, :-reach]], 1)
            change, reach = more, 2 * reach
        h = h + change
        if change.abs().max() <= tol:
            break
    return h, steps
