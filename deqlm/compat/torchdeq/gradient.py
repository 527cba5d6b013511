"""The gradients of torchdeq: phantom steps or the implicit gradient behind a solved point, at several states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqlm.compat.torchdeq.solvers import step_ahead
from deqlm.compat.torchdeq.watch import Watch
from deqlm.gradients import Gradient, Phantom
from deqlm.gradients.base import Steps
from deqlm.wrap.rows import RowMap
from deqlm_solvers import Adjoint, Map, Solve, Stop

__all__ = ["Behind", "Tail"]


@dataclass(frozen=True)
class Tail:
    """How one state is tied to autograd.

    Attributes:
        places: phantom steps behind it whose points are states, counted from 1, the last one being the last step.
        damping: that of the steps.
        implicit: the implicit gradient in their place, or None.
    """

    places: tuple[int, ...]
    damping: float
    implicit: Gradient | None = None

    @property
    def steps(self) -> int:
        """How many phantom steps there are."""
        return self.places[-1]

    def tie(self, f: Map, z: Tensor, adjoint: Adjoint) -> list[Tensor]:
        """Return the states (B, N) that follow from ``z`` (B, N)."""
        if self.implicit is not None:
            with torch.no_grad():
                z = step_ahead(f, z, 1.0)
            return [self.implicit.connect(f, z, adjoint) if torch.is_grad_enabled() else z]
        states, at = [], 0
        for place in self.places:
            z = Phantom(place - at, self.damping).connect(f, z, adjoint)
            at = place
            states.append(z)
        return states


class Behind(Steps):
    """Ties the point of a solve, and states on the way to it, to autograd as torchdeq does.

    It is made for one call, and keeps the states of that call.

    Args:
        watch: what has seen the solve.
        ahead: a damped step with this factor comes before; None leaves it away.
        tails: how each state is tied, the last one being the solved point.
        earlier: evaluations after which the states before it are.
        same: return the solved point itself, with the gradient of the steps behind it.

    Attributes:
        states: what came of it, (B, N) each.
    """

    same_value = True

    def __init__(
        self, watch: Watch, ahead: float | None, tails: Sequence[Tail], earlier: Sequence[int] = (), same: bool = False
    ) -> None:
        self.watch, self.ahead, self.tails, self.earlier, self.same = watch, ahead, tuple(tails), earlier, same
        self.states: list[Tensor] = []

    def for_solve(self, solve: Solve) -> Behind:
        return self

    def graphs(self, stop: Stop) -> int:
        return sum(1 if tail.implicit is not None else tail.steps for tail in self.tails)

    def connect(self, f: Map, z: Tensor, adjoint: Adjoint) -> Tensor:
        self.watch.end()
        with torch.no_grad():
            z = step_ahead(f, z, self.ahead)
        points = [*(self._sound(f, z, self.watch.state(place)) for place in self.earlier), z]
        self.states = [
            state for tail, point in zip(self.tails, points, strict=True) for state in tail.tie(f, point, adjoint)
        ]
        if not self.same:
            return self.states[-1]
        tied = self.states[-1]
        self.states = [z if not tied.requires_grad else z + (tied - tied.detach())]
        return self.states[-1]

    @staticmethod
    def _sound(f: Map, z: Tensor, state: Any) -> Tensor:
        """Return a state on the way, (B, N), with the solved point in rows that were not finite."""
        assert isinstance(f, RowMap)
        rows = f.rows.pack(state)
        return torch.where(rows.isfinite().all(1, keepdim=True), rows, z)
