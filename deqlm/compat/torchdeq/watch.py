"""What torchdeq tells of a solve: the residual of every evaluation, and states on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from deqlm.wrap.trees import map_tensors, tensors

__all__ = ["SolverStat", "Watch", "solver_stat_from_final_step"]

SolverStat = dict[str, Tensor]
"""``abs_lowest``, ``rel_lowest``, ``nstep``, ``sradius``: (B,); ``abs_trace``, ``rel_trace``: (B, evaluations)."""


class Watch:
    """Evaluates a map and takes down what the evaluations of a solve, which are those without grad, come to.

    Args:
        f: map of a state, a tensor or a tree of tensors.
        places: evaluations, counted from 1, whose f(z) is kept.
        numbers: take down residuals.
        rows: rows B; evaluations of fewer are no steps of the solve.

    Attributes:
        evaluations: steps of the solve so far.
        ended: the solve is done.
    """

    def __init__(self, f: Callable[..., Any], rows: int, places: Collection[int] = (), numbers: bool = True) -> None:
        self.f = f
        self.rows = rows
        self.places = set(places)
        self.numbers = numbers
        self.evaluations = 0
        self.ended = False
        self.kept: dict[int, Any] = {}
        self.last: Any = None
        self._trace: list[tuple[Tensor, Tensor]] = []

    def __call__(self, z: Any, *args: Any) -> Any:
        fz = self.f(z, *args)
        if not self.ended and not torch.is_grad_enabled():
            self.take(z, fz)
        return fz

    def end(self) -> None:
        """Say that the solve is done: further evaluations are no steps of it."""
        self.ended = True

    def take(self, z: Any, fz: Any) -> None:
        """Take down one evaluation."""
        self.evaluations += 1
        if self.numbers:
            self._trace.append(_residuals(z, fz, self.rows))
        if self.places:
            self.last = map_tensors(Tensor.clone, fz)
            if self.evaluations in self.places:
                self.kept[self.evaluations] = self.last

    def state(self, place: int) -> Any:
        """Return f(z) of evaluation ``place``, of the last one where the solve ended before."""
        return self.kept.get(place, self.last)

    def info(self, stop_mode: str, device: torch.device, *, final: bool = False) -> SolverStat:
        """Return the numbers by torchdeq's names, -1 where none was taken.

        Args:
            stop_mode: "abs" or "rel": ``nstep`` is the evaluation with the least of these residuals.
            device: of the state.
            final: the last evaluation takes the place of the one with the least residual, as in a budget.
        """
        if not self._trace:
            empty = torch.full((self.rows,), -1.0, dtype=torch.float32, device=device)
            names = ("abs_lowest", "rel_lowest", "nstep", "sradius")
            return {**dict.fromkeys(names, empty), **dict.fromkeys(("abs_trace", "rel_trace"), empty[:, None])}
        absolute, relative = zip(*self._trace, strict=True)
        traces = {"abs": torch.stack(absolute, 1), "rel": torch.stack(relative, 1)}
        tried = {mode: trace[:, -1:] if final else trace.nan_to_num(nan=torch.inf) for mode, trace in traces.items()}
        lowest = {mode: trace.min(1) for mode, trace in tried.items()}
        step = torch.full_like(lowest["abs"].indices, self.evaluations) if final else lowest[stop_mode].indices + 1
        return {
            "abs_lowest": lowest["abs"].values,
            "rel_lowest": lowest["rel"].values,
            "abs_trace": traces["abs"],
            "rel_trace": traces["rel"],
            "nstep": step.to(traces["abs"].dtype),
            "sradius": torch.full((self.rows,), -1.0, dtype=torch.float32, device=device),
        }


def solver_stat_from_final_step(z: Any, fz: Any, nstep: int = 0) -> SolverStat:
    """Return the numbers of one evaluation by torchdeq's names.

    Args:
        z: point, (B, ...), or a list of such tensors.
        fz: f(z).
        nstep: evaluations that led to it.

    Examples:
        >>> info = solver_stat_from_final_step(torch.zeros(2, 3), torch.ones(2, 3), 4)
        >>> [round(r, 3) for r in info["abs_lowest"].tolist()], info["nstep"].tolist()
        ([1.732, 1.732], [4.0, 4.0])
    """
    first = tensors(z)[0]
    watch = Watch(lambda z: z, first.shape[0] if first.dim() else 1)
    watch.take(z, fz)
    info = watch.info("abs", first.device)
    return {**info, "nstep": torch.full_like(info["abs_lowest"], nstep)}


def _residuals(z: Any, fz: Any, rows: int) -> tuple[Tensor, Tensor]:
    """Return ||f(z) - z|| and that divided by ||f(z)||, (B,) each."""
    pairs = list(zip(tensors(z), tensors(fz), strict=True))
    residual = _norm([b - a for a, b in pairs], rows)
    return residual, residual / (_norm([b for _, b in pairs], rows) + 1e-9)


def _norm(leaves: list[Tensor], rows: int) -> Tensor:
    wide = [leaf.detach().to(torch.promote_types(leaf.dtype, torch.float32)) for leaf in leaves]
    norms = [torch.linalg.vector_norm(leaf.reshape(rows, -1), dim=1) for leaf in wide]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms, 1), dim=1)
