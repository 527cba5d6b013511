"""Unknowns of tokens that do not count: held where they start, so that value and gradient belong to one map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deqlm.wrap.graph import begin, reaches_leaf, without_nan
from deqlm_solvers.core.kinds import in_transform

__all__ = ["Held"]


class Held:
    """The map in which masked unknowns stay at the start, whatever f makes of them.

    Its fixed point is what a solve with a ``token_mask`` returns, also where other tokens read masked ones; so the
    gradient is that of this map. A start that is NaN there is held at zero. NaN that f makes of a masked unknown, or of
    its derivative, reaches no gradient.

    Args:
        masked: (B, N) bool, True where an unknown is held.
        start: (B, N), where it is held; with a graph, gradients reach it.
    """

    def __init__(self, masked: Tensor, start: Tensor) -> None:
        self.masked = masked
        self.at = torch.where(masked & start.isnan(), 0.0, start)
        self._spoils: list[bool] = []

    def point(self, z: Tensor) -> Tensor:
        """Return ``z`` (B, N) with masked unknowns where they are held."""
        return torch.where(self.masked, self.at, z)

    def select(self, rows: Tensor) -> Held:
        """Return the same of some rows (K,), int64."""
        made = object.__new__(Held)
        made.masked, made.at = self.masked.index_select(0, rows), self.at.index_select(0, rows)
        made._spoils = self._spoils
        return made

    def look(self, f: Callable[[Tensor], Tensor], z: Tensor) -> None:
        """Find out at ``z`` (B, N) whether f makes NaN of masked unknowns, so that all later evaluations are alike.

        Within activation checkpointing an evaluation must save the same tensors when it is done again.
        """
        if not self._spoils:
            self.evaluate(f, z)

    def evaluate(self, f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """Return what the map makes of ``z`` (B, N). f: the map that knows no mask."""
        point = self.point(z)
        graph = torch.is_grad_enabled() and not in_transform(z)
        return self.point(self._with_graph(f, point) if graph else f(point))

    def _with_graph(self, f: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
        source = point if point.requires_grad else begin(point)
        fz = self._sound(f, source)
        return fz if point.requires_grad or reaches_leaf(fz, source) else fz.detach()

    def _sound(self, f: Callable[[Tensor], Tensor], source: Tensor) -> Tensor:
        if not self._spoils:
            fz = f(source)
            self._spoils.append(_spoils(fz, source))
            if not self._spoils[0]:
                return fz
        return without_nan(f, source) if self._spoils[0] else f(source)


def _spoils(fz: Tensor, source: Tensor) -> bool:
    """Say whether f made NaN, or a derivative that makes NaN of a cotangent of zero."""
    if not bool(fz.isfinite().all()):
        return True
    if not fz.requires_grad:
        return False
    try:
        (pulled,) = torch.autograd.grad(fz, source, torch.zeros_like(fz), retain_graph=True, allow_unused=True)
    except RuntimeError:
        # a graph that cannot be asked twice, or not for one tensor alone
        return False
    return pulled is not None and not bool(pulled.isfinite().all())
