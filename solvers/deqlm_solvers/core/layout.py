"""How the rows of a solve are to be read: leaves, tokens, scale, mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from deqlm_solvers.core.processes import Processes

__all__ = ["Layout"]


@dataclass(frozen=True, eq=False)
class Layout:
    """What rows stand for; a solver passes it on to the measure of residuals and needs no more of it.

    Attributes:
        leaves: shape of each tensor of the state within one row; None is one leaf of N unknowns.
        batch_dims: how many dimensions of the user's state index rows.
        scale: s of the tolerance, (B,), or None for 0.
        token_mask: (B, L) bool, True where a token counts; None counts all.
        atol_scale: factor of ``atol``, (B,) float64, or None for 1; what has a size of its own in every row.
        round: rounds a point (B, N) to what f will see of it, for states of several dtypes; None where that is the
            point itself.
        first: residual and max(||z||, ||f(z)||) of the first point of every row, (2, B) float64, for a solve that goes
            on from the end of another one; None where it begins. See `Runaway`.
        together: the processes that decide together with ``Stop(collective=True)``; None is all.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve, Stop
        >>> layout = Layout(leaves=((4, 2),))  # rows of 8 unknowns: 4 tokens of width 2
        >>> sol = Solve(stop=Stop(per="token"))(lambda z: 0.5 * z + 1, torch.zeros(3, 8), layout)
        >>> sol.token_steps.shape
        torch.Size([3, 4])
    """

    leaves: tuple[tuple[int, ...], ...] | None = None
    batch_dims: int = 1
    scale: Tensor | None = None
    token_mask: Tensor | None = None
    atol_scale: Tensor | None = None
    round: Callable[[Tensor], Tensor] | None = None
    first: Tensor | None = None
    together: Processes | None = None

    def select(self, rows: Tensor) -> Layout:
        """Return what some rows (K,), int64, stand for."""
        scale, mask, atol_scale = (
            t if t is None else t.index_select(0, rows) for t in (self.scale, self.token_mask, self.atol_scale)
        )
        return replace(self, scale=scale, token_mask=mask, atol_scale=atol_scale)
