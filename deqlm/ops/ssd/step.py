"""One token of the scan."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["skip", "step"]


def step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the output of one token and the state after it: S = exp(dt A) S_before + dt x B^T, y = S C + D x.

    Args:
        state: S_before, (B, H, P, N), float32 or float64; not written to.
        x: input, (B, H, P).
        dt: step size, (B, H), not negative.
        A: decay rate, (H,), not positive.
        B: input map, (B, G, N); heads g H/G to (g+1) H/G - 1 share group g.
        C: output map, (B, G, N).
        D: skip, (H,) or (H, P), or None.

    Returns:
        y (B, H, P) in the dtype of ``x``, and the state (B, H, P, N) in the dtype of ``state``.

    Reference:
        Dao and Gu (2024), Transformers are SSMs, ICML, section 2.1.

    Examples:
        >>> y, state = step(torch.zeros(2, 4, 8, 16), torch.randn(2, 4, 8), torch.rand(2, 4), -torch.rand(4),
        ...                 torch.randn(2, 1, 16), torch.randn(2, 1, 16))
        >>> y.shape, state.shape
        (torch.Size([2, 4, 8]), torch.Size([2, 4, 8, 16]))
    """
    dtype, (batch, heads, width, size) = state.dtype, state.shape
    groups = B.shape[1]
    share = heads // groups * width  # a view by -1 is ambiguous without rows
    X, dt, B, C = (t.to(dtype) for t in (x, dt, B, C))
    decay = torch.exp(dt * A.to(dtype))[..., None, None]  # (B, H, 1, 1)
    fed = (X * dt[..., None]).reshape(batch, groups, share, 1) * B[:, :, None, :]  # (B, G, H/G P, N)
    state = decay * state + fed.view(batch, heads, width, size)
    y = (state.reshape(batch, groups, share, size) * C[:, :, None, :]).sum(-1).view(batch, heads, width)
    return skip(y, X, D).to(x.dtype), state


def skip(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    """Return y + D x for ``y`` and ``x`` (..., H, P) and ``D`` (H,), (H, P) or None."""
    if D is None:
        return y
    return y + x * (D[:, None] if D.dim() == 1 else D).to(x.dtype)
