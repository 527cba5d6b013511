"""What the evaluations of a solve tell of the inverse Jacobian, free of charge."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from deqlm_solvers import Map
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.kinds import in_transform
from deqlm_solvers.core.norms import lengths

__all__ = ["Watched", "inverse_estimate"]

LEAST_SINE = 1e-5
"""Share of a change of the residual that newer ones do not explain, below which it tells nothing more."""
NOISE = 100.0
"""Multiple of the rounding of f(z) that this share must exceed."""
ACCURATE = 1e-6
"""Rounding of f(z), times NOISE, relative to a change, beyond which it is taken after those that are less rounded."""


class Watched:
    """A map that remembers its last evaluations.

    Args:
        f: the map, (B, N) to (B, N).
        memory: changes from one evaluation to the next that are kept.

    Examples:
        >>> f = Watched(lambda z: 0.5 * z, memory=1)
        >>> _ = f(torch.ones(1, 1)), f(torch.zeros(1, 1))
        >>> [t.tolist() for t in f.changes()]
        [[[[-1.0]]], [[[0.5]]], [[1.5]]]
    """

    def __init__(self, f: Map, memory: int) -> None:
        self.f = f
        self.seen: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory + 1)

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        fz = self.f(z)
        if not in_transform(z):
            point = z.detach().to(inner_dtype(z.dtype))
            self.seen.append((point.clone(), fz.detach() - point))
        return fz

    def changes(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return changes of z and of f(z) - z, newest first, (B, M, N) each, and the size of numbers in f, (B, 1).

        None where there were fewer than two evaluations.
        """
        if len(self.seen) < 2:
            return None
        z, r = (torch.stack(list(ts)[::-1], 1) for ts in zip(*self.seen, strict=True))
        size = (z.abs() + r.abs()).nan_to_num(0.0, 0.0, 0.0).amax((1, 2)).to(torch.float64)
        return z[:, :-1] - z[:, 1:], r[:, :-1] - r[:, 1:], size[:, None] * z.shape[2] ** 0.5


def inverse_estimate(s: Tensor, y: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return (q, p), (B, M, N) each, of H = -I + sum of p q^T, the matrix nearest to -I with H y = s for all pairs.

    The changes y are made orthonormal, newest first, into q, and what H + I makes of them into p alike; the last ones
    of a solve to rounding come after accurate ones. A change that those before it explain, that is lost in rounding or
    not finite is left out: q and p are zero there.

    Args:
        s: changes of z, newest first, (B, M, N).
        y: changes of f(z) - z, likewise.
        size: ||f(z)||, for what rounding f leaves of y, (B, 1).
    """
    noise = NOISE * torch.finfo(s.dtype).eps * size
    late = ~(noise <= ACCURATE * lengths(y))
    order = late.to(torch.uint8).argsort(dim=1, stable=True)[..., None].expand_as(y)
    s, y = s.gather(1, order), y.gather(1, order)
    q, p = torch.zeros_like(y), torch.zeros_like(s)
    for i in range(y.shape[1]):
        new, image = y[:, i], s[:, i] + y[:, i]
        usable = (new.isfinite() & image.isfinite()).all(1, keepdim=True)
        new, image = torch.where(usable, new, 0.0), torch.where(usable, image, 0.0)
        whole = _length(new)
        for _ in range(2):
            along = (q[:, :i] * new[:, None]).sum(2, keepdim=True)
            new, image = new - (along * q[:, :i]).sum(1), image - (along * p[:, :i]).sum(1)
        left = _length(new)
        keep = left > torch.maximum(noise, LEAST_SINE * whole)
        scale = torch.where(keep, left, 1.0).to(new.dtype)
        q[:, i], p[:, i] = torch.where(keep, new / scale, 0.0), torch.where(keep, image / scale, 0.0)
    return q, p


def _length(t: Tensor) -> Tensor:
    return lengths(t)[:, None]
