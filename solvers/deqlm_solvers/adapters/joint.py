"""All rows as one vector of B*N unknowns, for peers that solve one vector."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deqlm_solvers.adapters.peer import PeerEndedError, PeerMap
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation, Map
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.criterion import Residuals

__all__ = ["Joint"]

Vector = NDArray[np.float64]


class Joint(PeerMap):
    """Gives a peer F(x) = f(x) - x on float64 vectors, and ends it when its point is good enough or hopeless.

    f is evaluated in the dtype of the state, at the point rounded to that dtype; so what is returned has the residual
    that is reported. The returned point is the last one that was kept.

    Attributes:
        start: z0 as a vector, (B*N,).
    """

    def __init__(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> None:
        super().__init__(f, z0, stop, layout, most=stop.max_iter)
        self.start: Vector = z0.detach().to("cpu", torch.float64, copy=True).flatten().numpy()
        self.like = z0
        self.kept = z0.detach().clone()
        self.reading: Residuals | None = None
        self.token_steps: Tensor | None = None
        # A Wolfe search evaluates one more point behind the accepted one; others end at the accepted one.
        self.recent: deque[Evaluation] = deque(maxlen=4)

    def residual(self, x: Vector) -> Vector:
        """Return F(x); the first point is kept at once."""
        at = self.evaluate(self._state(x))
        self.recent.append(at)
        if self.reading is None:
            self._keep(at.z, self.measure(at))
        return self._vector(at)

    def residual_best(self, x: Vector) -> Vector:
        """Return F(x); a point is kept when its worst row is nearer to its tolerance than any before."""
        at = self.evaluate(self._state(x))
        reading = self.measure(at)
        if self.reading is None or bool(reading.ratio.max() < self.reading.ratio.max()):
            self._keep(at.z, reading)
        return self._vector(at)

    def iterate(self, x: Vector, residual: Vector) -> None:
        """Keep an iterate of the peer, which has been evaluated; the callback of scipy's nonlinear solvers."""
        z = self._state(x)
        at = next(e for e in reversed(self.recent) if torch.allclose(e.z, z, rtol=0, atol=0, equal_nan=True))
        self._keep(at.z, self.measure(at))

    def solution(self) -> Solution:
        """Return the kept point with its residual."""
        assert self.reading is not None and self.last is not None
        steps = self.token_steps
        if steps is not None and self.measure.mask is not None:
            steps = torch.where(self.measure.mask, steps, 0)
        return self.close(self.kept, self.reading, self.measure(self.last), steps)

    def _keep(self, z: Tensor, reading: Residuals) -> None:
        """Keep a finite point; leave the peer when all rows pass, or one is not finite or has diverged."""
        finite = bool(reading.residual.isfinite().all())
        if finite or self.reading is None:
            self.kept, self.reading = z, reading
            self._note_tokens(reading)
        if not finite or bool((reading.ratio <= 1).all()) or bool((reading.residual > self.limit).any()):
            raise PeerEndedError

    def _note_tokens(self, reading: Residuals) -> None:
        if self.stop.per != "token" or reading.groups is None:
            return
        passing = reading.groups <= 1
        before = torch.zeros_like(passing, dtype=torch.int64) if self.token_steps is None else self.token_steps
        self.token_steps = torch.where(passing, torch.where(before > 0, before, self.map.calls), 0)

    def _state(self, x: Vector) -> Tensor:
        like = self.like
        return torch.from_numpy(x).to(like.device, like.dtype, copy=True).reshape(like.shape)

    def _vector(self, at: Evaluation) -> Vector:
        return at.r.to("cpu", torch.float64, copy=True).flatten().numpy()
