"""The scan as matrix products within chunks of tokens and a recurrence between them: plain PyTorch, any device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deqlm.ops.precision import no_autocast, wide
from deqlm.ops.ssd.step import skip, step

__all__ = ["CHUNK", "chunked"]

CHUNK = 64
"""Tokens per chunk; see docs/log.md for the times of others."""


def chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return output and final state; arguments, shapes and results are those of `deqlm.ops.ssd.scan`.

    With a = cumsum(dt A) inside a chunk, the scores C_i . B_j exp(a_i - a_j) for i >= j carry what the chunk's own
    tokens feed, and exp(a_i) C_i what its first state brings. Everything is float32 at least, autocast or not, and a is
    float64. All is differentiable, so second derivatives and forward-mode ones exist.

    Reference:
        Dao and Gu (2024), Transformers are SSMs, ICML, section 6.
    """
    dtype = wide(x.dtype)
    with no_autocast(x.device):
        X, dt, A, B, C = (t.to(dtype) for t in (x, dt, A, B, C))
        state = None if initial_state is None else initial_state.to(dtype)
        if x.shape[1] == 1:
            y, state = _one(X, dt, A, B, C, state)
        else:
            y, state = _many(X, dt, A, B, C, state, CHUNK if chunk_size is None else chunk_size)
        return skip(y, X, D).to(x.dtype), state


def _one(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    if state is None:
        state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1])
    y, state = step(state, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0])
    return y[:, None], state


def _many(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Return y (B, L, H, P) without skip, and the final state; all tensors of one dtype.

    Letters of the shapes: B batch, c chunk, Q token of a chunk, G group, R head of a group, P width of a head, N state.
    """
    batch, length, heads, width = x.shape
    groups, size = B.shape[2:]
    share = heads // groups  # a view by -1 is ambiguous without rows
    chunks = math.ceil(length / chunk_size)
    tokens = math.ceil(length / chunks)  # chunks of equal length need the least padding
    pad = chunks * tokens - length
    if pad:  # dt = 0: these tokens neither decay nor feed
        x, dt, B, C = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad)) for t in (x, dt, B, C))

    dt = dt.reshape(batch, chunks, tokens, groups, share)  # (B, c, Q, G, R)
    X = x.reshape(batch, chunks, tokens, groups, share, width) * dt[..., None]  # (B, c, Q, G, R, P)
    B, C = (t.reshape(batch, chunks, tokens, groups, size).transpose(2, 3) for t in (B, C))  # (B, c, G, Q, N)
    # differences of these sums decide about decays: in float32 they would lose digits to large steps elsewhere
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    a = (dt.to(exact) * A.to(exact).view(groups, -1)).cumsum(2)  # (B, c, Q, G, R)

    y = _within(X, B, C, a)
    fed = (X * (a[:, :, -1:] - a).to(X.dtype).exp()[..., None]).transpose(2, 3).flatten(-2)  # (B, c, G, Q, RP)
    fed = (fed.transpose(-1, -2) @ B).view(batch, chunks, heads, width, size)
    entering, state = _pass(fed, a[:, :, -1].to(X.dtype).exp().view(batch, chunks, heads, 1, 1), state)
    if entering is not None:
        later = chunks - entering.shape[1]  # without an initial state nothing enters the first chunk
        brought = C[:, later:] @ entering.view(batch, chunks - later, groups, share * width, size).transpose(-1, -2)
        left = a[:, later:].to(X.dtype).exp()[..., None]
        brought = brought.view(*brought.shape[:-1], share, width).transpose(2, 3) * left
        y = y + brought if later == 0 else torch.cat([y[:, :later], y[:, later:] + brought], dim=1)
    return y.reshape(batch, chunks * tokens, heads, width)[:, :length], state


def _within(X: Tensor, B: Tensor, C: Tensor, a: Tensor) -> Tensor:
    """Return what the tokens of a chunk get from those of the same chunk, (B, c, Q, G, R, P)."""
    a = a.permute(0, 1, 3, 4, 2)  # (B, c, G, R, Q)
    future = torch.ones(a.shape[-1], a.shape[-1], dtype=torch.bool, device=a.device).triu(1)
    # masked before exp: what lies in the future would overflow, and infinity times zero is NaN in backward
    decay = (a[..., :, None] - a[..., None, :]).to(X.dtype).masked_fill(future, -torch.inf).exp()
    scores = (C @ B.transpose(-1, -2))[:, :, :, None] * decay  # (B, c, G, R, Q, Q)
    return (scores @ X.permute(0, 1, 3, 4, 2, 5)).permute(0, 1, 4, 2, 3, 5)


def _pass(fed: Tensor, decay: Tensor, state: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Return the states that enter the chunks, (B, c or c - 1, H, P, N) or None, and the final state.

    Args:
        fed: what each chunk feeds into the state, (B, c, H, P, N).
        decay: what each chunk leaves of the state it was given, (B, c, H, 1, 1).
        state: initial state or None, which saves the first chunk.
    """
    entering = []
    # parted once: the backward of every fed[:, c] would write the whole of fed
    for new, left in zip(fed.unbind(1), decay.unbind(1), strict=True):
        if state is not None:
            entering.append(state)
        state = new if state is None else torch.addcmul(new, left, state)
    assert state is not None
    return (torch.stack(entering, dim=1) if entering else None), state
