"""Parts of a row that one norm over the row cannot see, because they are smaller than its tolerance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from deqlm_solvers import Layout, Stop
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.loop.criterion import Criterion

__all__ = ["Parts", "find_parts"]

BY_CHANCE = 1e-3
"""A single unknown may cross zero, so it must be so much smaller still than the tolerance of its row."""


@dataclass(frozen=True)
class Parts:
    """Tokens or leaves whose whole size is below the tolerance of their row.

    Attributes:
        per: what the parts are: "token" or "leaf".
        dim: dimension of the tokens in the state, None for leaves.
        count: parts of a row.
        below: those that are smaller than the tolerance of a row that passed.
        open: those among them whose own residual is above the tolerance relative to their own size.
        spread: size of the row in units of its smallest part that is not zero.
        worst: largest relative residual of ``open`` parts; 0 where there is none.
    """

    per: Literal["token", "leaf"]
    dim: int | None
    count: int
    below: tuple[int, ...]
    open: tuple[int, ...]
    spread: float
    worst: float

    @property
    def rule(self) -> dict[str, Any]:
        """The fields of the `Stop` that looks at every part."""
        return {"per": self.per} if self.dim is None or self.dim == 1 else {"per": self.per, "token_dim": self.dim}


def find_parts(z: Tensor, fz: Tensor, passed: Tensor, stop: Stop, layout: Layout, sight: float) -> Parts | None:
    """Return the parts that are out of sight, of the division with the most open ones; None where all are seen.

    Args:
        z: (B, N), the returned points.
        fz: f(z).
        passed: rows that are within tolerance, (B,) bool.
        stop: the tolerance that rows were judged by.
        layout: what the rows stand for.
        sight: a part smaller than this times its row is not seen by the backward solve; 0 where there is none with one
            norm for the row.
    """
    rows = passed.nonzero().flatten().to(z.device)
    if not len(rows):
        return None
    z, fz = z[rows], fz[rows]
    mask = None if layout.token_mask is None else layout.token_mask[rows.to(layout.token_mask.device)]
    found = [
        made
        for rule in _divisions(layout)
        if (made := _look(z, fz, stop, rule, replace(layout, scale=None, token_mask=mask), sight)) is not None
    ]
    return max(found, key=lambda parts: (len(parts.open), len(parts.below)), default=None)


def _divisions(layout: Layout) -> Iterator[Stop]:
    """Yield how a row falls into parts: leaves, or the tokens along one of the first two dimensions of the state.

    The last dimension is that of features, but where it is the only one of a row that is the whole batch.
    """
    leaves = layout.leaves or ()
    if len(leaves) > 1:
        yield Stop(per="leaf")
    for dim in (0, 1):
        axis = dim - layout.batch_dims
        alone = layout.batch_dims == 0 and all(len(shape) == 1 for shape in leaves)
        if axis >= 0 and all(axis < len(shape) - (not alone) for shape in leaves):
            lengths = {shape[axis] for shape in leaves}
            if len(lengths) == 1 and max(lengths) > 1:
                yield Stop(per="token", token_dim=dim)


def _look(z: Tensor, fz: Tensor, stop: Stop, rule: Stop, layout: Layout, sight: float) -> Parts | None:
    own = Stop(rtol=stop.rtol, atol=stop.atol, norm=stop.norm, per=rule.per, token_dim=rule.token_dim)
    layout = layout if rule.per == "token" and rule.token_dim == stop.token_dim else replace(layout, token_mask=None)
    at = Evaluation(z, fz)
    _, relative, ratio, _ = Criterion(own, layout, z).groups(at)
    size = Criterion(own.replace(norm="l2"), layout, z).groups(at)[3]
    row = torch.maximum(row_norms(z), row_norms(fz))[:, None]
    tested = stop.per == rule.per and stop.token_dim == rule.token_dim
    chance = BY_CHANCE if size.numel() == z.numel() else 1.0
    unseen = (size > 0) & (size <= chance * max(0.0 if tested else stop.rtol, sight) * row)
    if layout.token_mask is not None:
        unseen = unseen & layout.token_mask.to(unseen.device)
    if not bool(unseen.any()):
        return None
    loose = unseen & (ratio > 1)
    smallest = torch.where(size > 0, size, torch.inf).amin(1, keepdim=True)
    return Parts(
        per="leaf" if rule.per == "leaf" else "token",
        dim=None if rule.per == "leaf" else rule.token_dim,
        count=size.shape[1],
        below=tuple(unseen.any(0).nonzero().flatten().tolist()),
        open=tuple(loose.any(0).nonzero().flatten().tolist()),
        spread=float((row / smallest).amax()),
        worst=float(torch.where(loose, relative, 0.0).amax()),
    )
