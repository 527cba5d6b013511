"""What every adapter needs: checks, a counting map that ends a peer on time, and the outcome per row."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from deqlm_solvers.core.checks import require
from deqlm_solvers.core.dtypes import HALF
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation, Map, Solver
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.criterion import Criterion, Residuals, warn_below_floor
from deqlm_solvers.loop.evaluator import Evaluator, check_start
from deqlm_solvers.loop.runaway import Runaway, share_left

__all__ = ["Peer", "PeerEndedError", "PeerMap"]

T = TypeVar("T")


class PeerEndedError(Exception):
    """Leaves a peer that offers no other way out."""


class Peer(Solver):
    """A solver of another library, run as it is, whose result is measured by our formula.

    STALLED also stands for "the peer gave up": it ended by a rule of its own, or failed, before ``max_iter``.
    """

    EXTRA: ClassVar[str] = "compare"

    def check(self, z0: Tensor, stop: Stop) -> None:
        """Refuse what no adapter can do.

        Raises:
            TypeError: no tensor.
            ValueError: a start that is not (B, N) in float32 or float64, or a budget.
        """
        check_start(z0)
        require(z0.dtype not in HALF, "z0", z0.dtype, f"float32 or float64 for {self.name}")
        if stop.is_budget:
            raise ValueError(f"{self.name} cannot run a budget (rtol=0, atol=0); set rtol or atol")
        warn_below_floor(stop, z0.dtype)


class PeerMap:
    """The map as a peer sees it: counted, never called too often, with the outcome of the solve at the end.

    Args:
        f: the map.
        z0: start, (B, N).
        stop: tolerance, trace and divergence.
        layout: leaves, tokens, scale and mask.
        most: evaluations that the peer may make.

    Attributes:
        last: the last evaluation, or None before the first.
    """

    def __init__(self, f: Map, z0: Tensor, stop: Stop, layout: Layout, most: int) -> None:
        self.map = Evaluator(f, z0)
        self.measure = Criterion(stop, layout, z0)
        self.stop = stop
        self.most = most
        self.last: Evaluation | None = None
        self.limit = torch.full((z0.shape[0],), torch.inf, dtype=torch.float64, device=z0.device)
        self.runaway = Runaway(layout.first, share_left(stop.rtol, self.map.eps), self.map.eps)
        self.trace: list[Tensor] = []
        self.in_map = False

    def evaluate(self, z: Tensor) -> Evaluation:
        """Evaluate f at ``z`` (B, N).

        Raises:
            PeerEndedError: instead of an evaluation beyond ``most``.
        """
        if self.map.calls >= self.most:
            raise PeerEndedError
        self.in_map = True
        at = self.map.at(z.contiguous())
        self.in_map = False
        if self.last is None:
            first = self.measure(at)
            self.limit = first.residual * self.stop.divergence
            self.runaway.runs(first.ratio <= 1, first.residual, first.size)
        if self.stop.trace:
            self.trace.append(self.measure(at).residual)
        self.last = at
        return at

    def run(self, peer: Callable[[], T], quiet: type[Warning] | None = None) -> T | None:
        """Call a peer; None where it ended by an exception that is not one of f.

        Args:
            peer: the call.
            quiet: a warning of the peer's own algebra that is not the caller's business.
        """
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                if quiet is not None:
                    warnings.simplefilter("ignore", quiet)
                return peer()
        except PeerEndedError:
            return None
        except (ArithmeticError, ValueError, torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
            if self.in_map:
                raise
            return None

    def close(self, z: Tensor, reading: Residuals, last: Residuals, token_steps: Tensor | None = None) -> Solution:
        """Return the solution.

        Args:
            z: returned point, (B, N).
            reading: at ``z``.
            last: of the last evaluation that the peer made.
            token_steps: see `Solution`.
        """
        calls = self.map.calls
        end = Status.MAX_ITER if calls >= self.stop.max_iter else Status.STALLED
        status = torch.full_like(reading.residual, int(end), dtype=torch.int8)
        runs = self.runaway.runs(reading.ratio <= 1, reading.residual, reading.size)
        beyond = (last.residual > self.limit) | (reading.residual > self.limit)
        status.masked_fill_(beyond | runs, int(Status.DIVERGED))
        status.masked_fill_(~(last.residual.isfinite() & reading.residual.isfinite()), int(Status.NONFINITE))
        status.masked_fill_((reading.ratio <= 1) & ~runs, int(Status.CONVERGED))
        sound = reading.residual.isfinite()
        return Solution(
            z=z,
            residual=torch.where(sound, reading.residual, torch.inf),
            relative=torch.where(sound, reading.relative, torch.inf),
            steps=torch.full_like(status, calls, dtype=torch.int64),
            status=status,
            cost=self.map.cost,
            trace=torch.stack(self.trace) if self.stop.trace else None,
            token_steps=token_steps,
            runaway=runs & (status == int(Status.DIVERGED)),
            first=self.runaway.first,
        )
