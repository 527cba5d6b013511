"""The contract of an engine: what happens between two evaluations of f, and what an engine must know to be asked."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.loop.method import Method

__all__ = ["LEAST_GAIN", "LEAST_LEFT", "Backend", "Knows", "anything", "may_leave", "pays", "unknown"]

LEAST_GAIN = 2048
"""Unknowns that must leave for the rest to be gathered: below, f costs its calls and not its arithmetic."""
LEAST_LEFT = 6
"""Evaluations that the slowest row must still need at its mean rate so far, for the rest to be gathered."""

Knows = Mapping[str, Callable[[Any], bool]]
"""Fields with the values of each that an engine honours; a field that is not named may only have its default."""


def anything(value: Any) -> bool:
    """Every value of a field is known."""
    return True


class Backend(ABC):
    """One solve's stopping rule and update rule, between evaluations.

    An engine says what it knows: `knows_stop` and `knows_layout` name the fields of `Stop` and `Layout` it honours.
    Whatever it does not name makes it decline, so that a new field, norm or rule can never be ignored by it; the loop
    then takes torch operations, or raises where the engine was asked for by name.

    Class attributes:
        knows_stop: fields of `Stop`, each with a test of its value.
        knows_layout: likewise of `Layout`.

    Attributes:
        masked: unknowns of tokens that do not count, (B, N) bool, or None.
    """

    knows_stop: ClassVar[Knows] = {}
    knows_layout: ClassVar[Knows] = {}

    masked: Tensor | None = None

    @classmethod
    def declines(cls, method: Method, stop: Stop, layout: Layout, z: Tensor) -> str:
        """Return why a solve from ``z`` (B, N), inner dtype, cannot be had here; empty where it can."""
        if stop.criterion is not None and "criterion" not in cls.knows_stop:
            # not kept in a cache, which would keep what it captures
            return f"it does not know Stop(criterion={stop.criterion!r})"
        return _unknown_stop(cls, stop) or unknown("Layout", layout, cls.knows_layout)

    @classmethod
    def again(cls, method: Method, evaluator: Evaluator, stop: Stop, layout: Layout, z: Tensor) -> Backend | None:
        """Return the engine of a solve like an earlier one, by what `remember` kept; None where there is none.

        ``method`` is what the caller has, before `Method.fitted`.
        """
        return None

    @classmethod
    def remember(cls, asked: Method, backend: Any, evaluator: Evaluator, layout: Layout, z: Tensor) -> None:
        """Keep what the next solve like that of ``backend`` may use, for the same objects ``asked`` and `Stop`."""
        return

    @abstractmethod
    def __init__(self, method: Method, evaluator: Evaluator, stop: Stop, layout: Layout, z: Tensor) -> None: ...

    @abstractmethod
    def advance(self, k: int, at: Evaluation, last: bool) -> tuple[Tensor, bool]:
        """Take evaluation ``k`` (from 0); return the point to evaluate next, and whether to go on.

        Args:
            k: number of the evaluation.
            at: the evaluation, of the rows that are present.
            last: no further evaluation can be paid.
        """

    @abstractmethod
    def rows_to_keep(self) -> Tensor | None:
        """Return the rows that stay, indices (K,) into those present, if the others leave by `may_leave`; else None."""

    @abstractmethod
    def narrow(self, rows: Tensor, z: Tensor) -> Tensor:
        """Go on with ``rows`` (K,) of those present; return their part of the point ``z``, (K, N)."""

    @abstractmethod
    def points(self) -> Tensor:
        """Return the points that would be returned now, (B, N), of all rows."""

    @abstractmethod
    def apart(self, z: Tensor) -> bool:
        """Say whether a row passed at ``z`` (B, N), the last points, beside others that return another point.

        Where f mixes rows, what it passed beside is then not what is returned. Reads the device.
        """

    @abstractmethod
    def review(self, at: Evaluation, take_up: bool) -> bool:
        """Take f at `points`, of all rows together after some had left; all are present from now on.

        Returns whether rows that passed on their own no longer do, and go on; never without ``take_up``.
        """

    @abstractmethod
    def finish(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        """Return the solution, (B, N); see `Tracker.finish`. ``z_last`` is not read where rows have left."""


@functools.lru_cache(maxsize=256)
def _unknown_stop(engine: type[Backend], stop: Stop) -> str:
    return unknown("Stop", stop, engine.knows_stop)


def unknown(kind: str, record: Any, knows: Knows) -> str:
    """Return which field of a record has a value that is not known, in words; empty where there is none.

    Args:
        kind: name of the record.
        record: a dataclass, whose defaults ask for nothing.
        knows: see `Knows`.
    """
    for name, field in record.__dataclass_fields__.items():
        value, test = getattr(record, name), knows.get(name)
        if test is anything or value is field.default:
            continue
        asked = not isinstance(value, Tensor) and value == field.default
        if not asked and (test is None or not test(value)):
            shown = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            return f"it does not know {kind}({name}={shown})"
    return ""


def pays(active: int, present: int, unknowns: int) -> bool:
    """Say whether the rows that are done are worth leaving out, going by numbers alone, so that runs repeat."""
    return 2 * active <= present and (present - active) * unknowns >= LEAST_GAIN


def may_leave(
    stop: Stop, k: int, active: int, present: int, rows: int, unknowns: int, left: Callable[[], float]
) -> bool:
    """Say whether the rows that are done leave now; ``left()`` is what the slowest other one still needs.

    The first that leave cost a probe of the others and, at the end, an evaluation of all.

    Args:
        stop: says when.
        k: number of the evaluation, from 0.
        active: rows that are not done.
        present: rows in the batch.
        rows: B.
        unknowns: N.
        left: returns evaluations.
    """
    most = stop.max_iter - (k + 1)
    if stop.compact == "at_once":
        price = active + rows if present == rows else 0
        return 0 < active < present and most * (present - active) > price
    return active > 0 and most >= LEAST_LEFT and pays(active, present, unknowns) and left() >= LEAST_LEFT
