"""Notices a training that falls back to guessing, and knows where to return to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import number, whole

__all__ = ["Fall", "Guard", "Watchman"]


@options
class Guard(Options):
    """When a training has fallen, and how it goes on.

    Loss and share of converged rows are looked at in windows. The window with the least loss of a stage is the best
    one, and weights and optimizer behind it are kept. Three things are a fall: a later window of that stage whose loss
    lies above it by ``rise`` times the loss of the very first window, which is about that of guessing; ``patience``
    windows of a later stage none of which is below the first loss by as much, so that what was learnt on shorter
    sequences is lost; and a loss that is not finite. Weights and optimizer then return to the best window, of the stage
    before where this one has none, the rate is multiplied with ``factor`` from then on, and both are told, with the
    share of converged rows before and after.

    Args:
        window: steps, >= 1; so often are weights copied at most.
        rise: part of the first loss, in (0, 1).
        patience: windows that a later stage may guess, >= 1.
        factor: of the learning rate, in (0, 1).
        most: falls that are answered, >= 1; behind the last one the training goes on unguarded.

    Raises:
        ValueError, TypeError: a value that breaks its rule.

    Examples:
        >>> Guard(window=10).factor
        0.3
    """

    window: int = 20
    rise: float = 0.25
    patience: int = 4
    factor: float = 0.3
    most: int = 3

    def __post_init__(self) -> None:
        whole("window", self.window, 1, None)
        whole("most", self.most, 1, None)
        whole("patience", self.patience, 1, None)
        for name in ("rise", "factor"):
            number(name, getattr(self, name), "in (0, 1)", lambda part: 0 < part < 1)


class Fall(NamedTuple):
    """One fall, and what was done.

    Attributes:
        step: behind which it was noticed.
        best_step: whose weights came back.
        loss: of the window that fell; None where a loss or gradient was not finite.
        best_loss: of the window returned to.
        converged: share of converged rows in the fallen window; None for a model that solves nothing.
        best_converged: in the other one.
        rate: factor of the learning rate from now on.
    """

    step: int
    best_step: int
    loss: float | None
    best_loss: float
    converged: float | None
    best_converged: float | None
    rate: float

    def line(self) -> str:
        """Return the fall in words."""
        rows = ""
        if self.converged is not None and self.best_converged is not None:
            rows = f" and the share of converged rows from {self.best_converged:.2f} to {self.converged:.2f}"
        loss = "a number that is not finite" if self.loss is None else f"{self.loss:.3g}"
        return (
            f"collapsed at step {self.step}: the loss went from {self.best_loss:.3g} to {loss}{rows}; "
            f"back to the weights of step {self.best_step}, with {self.rate:.3g} times the learning rate"
        )


class Watchman:
    """The guard at work on one training.

    Args:
        guard: its settings.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.falls: list[Fall] = []
        self.first: float | None = None
        self.best: dict[str, Any] | None = None
        self.before: dict[str, Any] | None = None
        self.stage, self.windows = 0, 0
        self._losses: list[float] = []
        self._converged: list[float] = []

    @property
    def rate(self) -> float:
        """Factor of the learning rate."""
        return self.guard.factor ** len(self.falls)

    def observe(self, stage: int, loss: float, converged: float | None) -> None:
        """Take in one step."""
        if stage != self.stage:
            # another length has another loss: the best one before tells nothing about it
            self.stage, self.windows, self._losses, self._converged = stage, 0, [], []
            self.before, self.best = self.best or self.before, None
        self._losses.append(loss)
        if converged is not None:
            self._converged.append(converged)

    def judge(self, step: int, weights: Callable[[], Any]) -> Fall | None:
        """Return the fall behind ``step``, if the window that is now full, or a loss that is not finite, is one.

        Args:
            step: steps taken.
            weights: called without arguments for the state to return to; copied here.
        """
        finite = all(map(math.isfinite, self._losses))
        if finite and len(self._losses) < self.guard.window:
            return None
        loss, share = self._close()
        if self._keep(step, loss, share, weights) or not self._has_fallen(loss):
            return None
        return self._fall(step, loss, share)

    def leave(self, step: int, weights: Callable[[], Any]) -> None:
        """End a stage behind ``step``: its last window counts, however few steps it has."""
        if self._losses:
            self._keep(step, *self._close(), weights)

    def _close(self) -> tuple[float | None, float | None]:
        """Return mean loss and share of the window, and begin the next one."""
        losses, shares = self._losses, self._converged
        self._losses, self._converged, self.windows = [], [], self.windows + 1
        loss = sum(losses) / len(losses) if all(map(math.isfinite, losses)) else None
        if self.first is None:
            self.first = loss
        return loss, sum(shares) / len(shares) if shares else None

    def _keep(self, step: int, loss: float | None, share: float | None, weights: Callable[[], Any]) -> bool:
        """Keep the weights if this window is the best one; return whether it is."""
        if loss is None or not self._is_best(loss):
            return False
        self.best = {"step": step, "loss": loss, "converged": share, "weights": copy.deepcopy(weights())}
        return True

    @property
    def refuge(self) -> dict[str, Any] | None:
        """What a fall returns to: the best window of this stage, or of the one before; None before there is one."""
        return self.best or self.before

    def _is_best(self, loss: float) -> bool:
        if self.best is not None:
            return loss <= self.best["loss"]
        return self.before is None or loss <= (1 - self.guard.rise) * (self.first or 0.0)

    def _has_fallen(self, loss: float | None) -> bool:
        if self.refuge is None or len(self.falls) == self.guard.most:
            return False
        if loss is None:
            return True
        if self.best is None:
            return self.windows >= self.guard.patience
        return loss > self.best["loss"] + self.guard.rise * (self.first or 0.0)

    def _fall(self, step: int, loss: float | None, share: float | None) -> Fall:
        best, self.windows = self.refuge, 0
        assert best is not None
        rate = self.guard.factor ** (len(self.falls) + 1)
        self.falls.append(Fall(step, best["step"], loss, best["loss"], share, best["converged"], rate))
        return self.falls[-1]

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes: plain data and tensors."""
        return {
            "falls": [list(fall) for fall in self.falls],
            "first": self.first,
            "best": self.best,
            "before": self.before,
            "stage": self.stage,
            "windows": self.windows,
            "losses": list(self._losses),
            "converged": list(self._converged),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the watchman stood that saved ``state``."""
        self.falls = [Fall(*fall) for fall in state["falls"]]
        self.first, self.best, self.before = state["first"], state["best"], state["before"]
        self.stage, self.windows = state["stage"], state["windows"]
        self._losses, self._converged = list(state["losses"]), list(state["converged"])
