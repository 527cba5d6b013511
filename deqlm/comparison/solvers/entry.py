"""One solver on one problem, and all solvers on one."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from deqlm.comparison.recorder import Trace
from deqlm.comparison.result import EntryBase, Row
from deqlm.reporting.table import duration, filled, wrapped

__all__ = ["Entry", "ProblemResult"]

Outcome = Literal["solved", "unsolved", "raised", "not installed"]


@dataclass
class Entry(EntryBase):
    """One solver on one problem.

    Attributes:
        solver: label, as one would type it.
        outcome: "solved" (every row), "unsolved" (a row is not, by its true residual), "raised", "not installed".
        message: what was raised, or which package is missing; one line.
        solved: rows whose true relative residual is at most `Settings.accepted`, 1.05 times the tolerance.
        evaluations: calls of f, as f saw them.
        row_evaluations: rows summed over those calls.
        token_evaluations: tokens summed over those rows; 0 where the problem has none.
        times: seconds of each timed run.
        overhead: seconds per evaluation beyond a bare call of f; may be below 0 by noise.
        memory: most bytes held at once, in units of the state; see `MemoryMeter`. None when not measured.
        residual: largest over rows of ||f(z) - z|| / ||f(z)||, f in float64, at the returned point.
        error: largest over rows of ||z - truth|| / ||truth||; None where no answer is known.
        statuses: rows per `Status` as the solver reports them.
        claimed: rows that the solver calls CONVERGED.
        counts_agree: whether the solver's own count of evaluations is the true one.
        remark: why a failure is no weakness of the method, where that is known.
        warnings: distinct warnings of the recorded run.
        trace: residual against evaluations and time; None where the solver did not run.

    Examples:
        >>> from deqlm.comparison import Entry
        >>> Entry(solver="anderson", outcome="solved", times=[0.2, 0.1, 0.3]).seconds
        0.2
    """

    solver: str
    outcome: Outcome = "raised"
    message: str = ""
    solved: int = 0
    evaluations: int = 0
    row_evaluations: int = 0
    token_evaluations: int = 0
    times: list[float] = field(default_factory=list)
    overhead: float | None = None
    memory: float | None = None
    residual: float = math.inf
    error: float | None = None
    statuses: dict[str, int] = field(default_factory=dict)
    claimed: int = 0
    counts_agree: bool = True
    remark: str = ""
    warnings: list[str] = field(default_factory=list)
    trace: Trace | None = None

    @property
    def ran(self) -> bool:
        """True when the solver returned something."""
        return self.outcome in ("solved", "unsolved")

    @property
    def seconds(self) -> float | None:
        """Median of the timed runs; None when there are none."""
        return statistics.median(self.times) if self.times else None

    @property
    def said(self) -> str:
        """What was raised, or the remark."""
        return super().said if not self.ran else f"{self.solver} {self.remark}" if self.remark else ""

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "seconds": self.seconds, "trace": self.trace and self.trace.to_dict()}


@dataclass
class ProblemResult(Row[Entry]):
    """All solvers on one problem.

    Attributes:
        label, title: name as typed, and what the problem tests.
        rows, unknowns: shape (B, N) of the state.
        tokens: positions of a row; 0 where the state has none.
        tol: relative tolerance asked for.
        max_iter: evaluations allowed.
        f_seconds: median time of a bare call of f.
        note: what the reader must know about f and the residuals; a line each.
        yours: the map is the user's own.
        message: why the problem could not be built; then there are no entries.
        entries: one per solver, in the order asked for.

    Examples:
        >>> from deqlm.comparison import compare
        >>> problem = compare("two_cycle", "anderson", repeats=1, progress=False)["two_cycle"]
        >>> problem.rows, problem.unknowns, problem.entry("anderson").solved
        (32, 64, 32)
    """

    tokens: int = 0
    tol: float = 0.0
    max_iter: int = 0
    f_seconds: float = 0.0
    note: str = ""
    yours: bool = False

    absent: ClassVar[str] = "not built"

    def facts(self, width: int) -> list[str]:
        head = (
            f"  B={self.rows}, N={self.unknowns}, tolerance {self.tol:g}, at most {self.max_iter} evaluations, "
            f"bare f {duration(self.f_seconds)}"
        )
        notes = (line for note in self.note.splitlines() for line in wrapped(f"note: {note}", width))
        return [*filled(head, width).splitlines(), *notes]
