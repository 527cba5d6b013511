"""The scan as the recurrence that defines it: slow, and the truth for every other realisation."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm.ops.ssd.step import step

__all__ = ["naive"]


def naive(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return output and final state, token after token, in float64.

    Arguments and shapes are those of `deqlm.ops.ssd.scan`; whatever their dtype, all arithmetic and both results are
    float64.

    Examples:
        >>> x, dt = torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1)
        >>> y, state = naive(x, dt, torch.zeros(1), torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
        >>> y.flatten().tolist(), state.item()  # nothing decays: a running sum
        ([1.0, 2.0, 3.0], 3.0)
    """
    x, dt, A, B, C = (t.double() for t in (x, dt, A, B, C))
    batch, _, heads, width = x.shape
    zero = x.new_zeros(batch, heads, width, B.shape[-1])
    state = zero if initial_state is None else initial_state.double()
    D = None if D is None else D.double()
    outputs = []
    # parted once: the backward of every x[:, t] would write the whole of x
    for x_t, dt_t, B_t, C_t in zip(*(t.unbind(1) for t in (x, dt, B, C)), strict=True):
        y, state = step(state, x_t, dt_t, A, B_t, C_t, D=D)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
