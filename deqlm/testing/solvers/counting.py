"""Counts what a solve does: calls of f, torch operations, host syncs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deqlm.testing.check import expect

__all__ = ["Counted", "Operations", "Played", "geometric", "per_evaluation"]

SYNCS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::item"}


class Counted:
    """A map that counts its calls and rows and remembers the points it was called with."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        self.f = f
        self.points: list[Tensor] = []
        self.rows = 0

    @property
    def calls(self) -> int:
        """How often it was called."""
        return len(self.points)

    def __call__(self, z: Tensor) -> Tensor:
        self.points.append(z.detach().clone())
        self.rows += z.shape[0]
        return self.f(z)


class Operations(TorchDispatchMode):
    """Counts ATen operations (views, detach and aliases left out) and reads from the device by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.syncs = 0

    @property
    def total(self) -> int:
        """How many operations were counted."""
        return sum(self.names.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name
        if name in SYNCS or (name == "aten::_to_copy" and _leaves_device(args, out)):
            self.syncs += 1
        elif not func.is_view and name != "aten::detach":
            self.names[name] += 1
        return out


def _leaves_device(args: Any, out: Any) -> bool:
    return isinstance(out, Tensor) and args[0].device.type != "cpu" and out.device.type == "cpu"


class Played:
    """A map that plays back tensors made before: it costs no operation, so all that is counted is the solver's."""

    def __init__(self, frames: list[Tensor]) -> None:
        self.frames = frames
        self.calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        return self.frames[self.calls - 1]


def per_evaluation(solve: Callable[[Played, int], Any], frames: list[Tensor]) -> tuple[float, float]:
    """Return operations and syncs per evaluation in the middle of a solve, start and end left out.

    Args:
        solve: runs a solve of the given map for the given number of evaluations.
        frames: what the map returns, one tensor per evaluation.
    """
    few, many = len(frames) // 2, len(frames)
    counts = []
    for length in (few, many):
        played = Played(frames)
        with Operations() as operations:
            solve(played, length)
        expect(played.calls == length, "a solve of {} evaluations made {}, so none can be priced", length, played.calls)
        counts.append((operations.total, operations.syncs))
    (ops_few, syncs_few), (ops_many, syncs_many) = counts
    return (ops_many - ops_few) / (many - few), (syncs_many - syncs_few) / (many - few)


def geometric(rate: float, B: int, N: int, steps: int) -> list[Tensor]:
    """Return f(z_k) of a Picard iteration whose residual falls by ``rate`` every time."""
    gen = torch.Generator().manual_seed(0)
    end, way = torch.randn(B, N, generator=gen), torch.randn(B, N, generator=gen)
    return [end + rate**k * way for k in range(1, steps + 1)]
