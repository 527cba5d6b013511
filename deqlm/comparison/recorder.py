"""The map as a comparison watches it: true counts, and what was seen at each evaluation."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from deqlm.comparison.record import finite
from deqlm_solvers import Map

__all__ = ["CountingMap", "Recorder", "Trace", "synchronize"]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Trace:
    """The worst row's residual against evaluations and time, as a staircase.

    Attributes:
        evaluations: number of the evaluation, from 1.
        seconds: time in the solver and in f until then; what the recording itself took is taken out.
        residual: largest over rows of the smallest ||f(z) - z|| / ||f(z)|| that the row has shown so far.
    """

    def __init__(self, evaluations: list[int], seconds: list[float], residual: list[float]) -> None:
        self.evaluations = evaluations
        self.seconds = seconds
        self.residual = residual

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; infinities become None."""
        return {key: finite(value) for key, value in vars(self).items()}

    def scaled(self, total: float) -> Trace:
        """Return the trace with its clock scaled to a run of ``total`` seconds."""
        last = self.seconds[-1] if self.seconds else 0.0
        factor = total / last if last > 0 else 1.0
        return Trace(self.evaluations, [s * factor for s in self.seconds], self.residual)

    def thinned(self, change: float = 0.01) -> Trace:
        """Return the ends and the points where the residual moved by more than ``change`` relative to the last kept."""
        keep, last = [], None
        for i, value in enumerate(self.residual):
            ends = i in (0, len(self.residual) - 1)
            if ends or last is None or not value > (1 - change) * last:
                keep.append(i)
                last = value
        return Trace(*([column[i] for i in keep] for column in (self.evaluations, self.seconds, self.residual)))


class CountingMap:
    """Counts calls and rows, and does nothing else; what timed runs use."""

    def __init__(self, f: Map) -> None:
        self.f = f
        self.evaluations = 0
        self.row_evaluations = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        self.row_evaluations += z.shape[0]
        return self.f(z)


class Recorder(CountingMap):
    """Counts, and keeps the relative residual of every row and the time at every evaluation.

    The clock stops while the recorder works, so `seconds` is the time of the solver and of f.
    """

    def __init__(self, f: Map, z0: Tensor) -> None:
        super().__init__(f)
        self.rows = z0.shape[0]
        self.device = z0.device
        self.relative: list[Tensor] = []
        self.stamps: list[float] = []
        self._numbers: list[int] = []
        self._paused = 0.0
        self._begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the start, less what recording took."""
        return time.perf_counter() - self._begun - self._paused

    def restart(self) -> None:
        """Start the clock; call it right before the solve."""
        synchronize(self.device)
        self._paused = 0.0
        self._begun = time.perf_counter()

    def __call__(self, z: Tensor) -> Tensor:
        fz = super().__call__(z)
        if _inside_transform(z):
            return fz
        synchronize(self.device)
        entered = time.perf_counter()
        self.stamps.append(entered - self._begun - self._paused)
        self._numbers.append(self.evaluations)
        with torch.no_grad():
            self.relative.append(relative_residual(z.detach(), fz.detach()))
        self._paused += time.perf_counter() - entered
        return fz

    def trace(self) -> Trace:
        """Return the worst row's best residual so far, thinned."""
        full = [r for r in self.relative if r.shape[0] == self.rows]
        if not full:
            return Trace([], [], [])
        table = torch.stack(full).nan_to_num(nan=torch.inf, posinf=torch.inf)
        worst = table.cummin(dim=0).values.amax(dim=1).tolist()
        return Trace(self._numbers[: len(worst)], self.stamps[: len(worst)], worst).thinned()


def relative_residual(z: Tensor, fz: Tensor) -> Tensor:
    """Return ||f(z) - z|| / ||f(z)|| per row, (B,) float64: 0 for an exact zero, infinite where it is not finite."""
    residual = torch.linalg.vector_norm(fz.double() - z.double(), dim=1)
    size = torch.linalg.vector_norm(fz.double(), dim=1)
    ratio = torch.where(residual == 0, 0.0, residual / size)
    return ratio.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _inside_transform(z: Tensor) -> bool:
    """Say whether z belongs to a torch.func transform; such a value must not be kept."""
    return torch._C._functorch.is_functorch_wrapped_tensor(z)  # type: ignore[attr-defined]
