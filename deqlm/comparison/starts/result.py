"""What a comparison of starts returns, and the columns of its table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from deqlm.comparison.record import Files
from deqlm.comparison.result import Column, EntryBase, Result, Row, last_column, name_column
from deqlm.comparison.starts.plot import draw_sequences
from deqlm.reporting.table import amount, duration

__all__ = ["StartComparison", "StartEntry", "StartProblem"]

PAYS = 0.05
"""Share of the evaluations from which on a start is said to pay, or to cost."""

LEGEND = (
    ("zero", "evaluations per row and solve from the start of the problem"),
    ("previous", "from the solution of the map before"),
    ("saved", "share of them that the solution before saves, the first solve left out"),
    ("time", "medians, summed over solves"),
    ("unsolved", "rows of all solves that miss the tolerance, from zero / from the solution before"),
    (
        "apart",
        "largest relative distance of the two answers: far above the tolerance, they are different fixed points",
    ),
    (
        "A solve",
        "begins with the point alone: no solver carries its history (Anderson's pairs, a Jacobian) to the next solve.",
    ),
)


@dataclass
class StartEntry(EntryBase):
    """One solver on one sequence; lists have one number per solve but the first, which has none before it.

    Attributes:
        solver: label, as one would type it.
        outcome: "ran", "raised" or "not installed".
        message: what was raised, one line.
        zero: evaluations per row, mean of the rows, from where the problem starts.
        previous: the same from the solution that this solver returned for the map before.
        seconds_zero, seconds_previous: median times.
        unsolved_zero, unsolved_previous: rows, over all solves, whose true relative residual is above 1.05 tolerance.
        both: rows, over all solves, that are solved from either start.
        apart: largest ||z_previous - z_zero|| / ||z_zero|| of these rows: far above the tolerance, another
            fixed point was found.

    Examples:
        >>> StartEntry("anderson", "ran", zero=[20.0, 20.0], previous=[5.0, 15.0], both=8).verdict
        'pays'
    """

    solver: str
    outcome: str = "raised"
    message: str = ""
    zero: list[float] = field(default_factory=list)
    previous: list[float] = field(default_factory=list)
    seconds_zero: list[float] = field(default_factory=list)
    seconds_previous: list[float] = field(default_factory=list)
    unsolved_zero: int = 0
    unsolved_previous: int = 0
    both: int = 0
    apart: float = 0.0

    @property
    def steps_zero(self) -> float:
        """Evaluations per row and solve, from zero."""
        return statistics.fmean(self.zero)

    @property
    def steps_previous(self) -> float:
        """Evaluations per row and solve, from the solution before."""
        return statistics.fmean(self.previous)

    @property
    def saved(self) -> float:
        """Share of the evaluations that the solution before saves; negative where it costs."""
        return 1 - sum(self.previous) / sum(self.zero)

    @property
    def verdict(self) -> Literal["pays", "costs", "no difference", "fails", "unsolved"]:
        """What it comes to: "fails" where more rows are unsolved than from zero, "unsolved" where none is solved."""
        if self.unsolved_previous > self.unsolved_zero:
            return "fails"
        if self.both == 0:
            return "unsolved"
        if abs(self.saved) < PAYS:
            return "no difference"
        return "pays" if self.saved > 0 else "costs"


@dataclass
class StartProblem(Row[StartEntry]):
    """All solvers on one sequence; fields as in `ProblemResult`, and the number of solves from the second on."""

    solves: int = 0
    tol: float = 0.0

    def facts(self, width: int) -> list[str]:
        return [f"  B={self.rows}, N={self.unknowns}, tolerance {self.tol:g}, {self.solves} solves"]


@dataclass
class StartComparison(Result[StartProblem]):
    """Result of `compare_starts`; what is not said here is as in `Comparison`.

    Attributes:
        problems: one `StartProblem` per sequence, in the order asked for.

    Examples:
        >>> from deqlm.comparison import compare_starts
        >>> result = compare_starts("inputs:change=0.01,inputs:change=1.4", "fixed_point", repeats=1, progress=False)
        >>> [problem.entries[0].verdict for problem in result.problems][0]
        'pays'
        >>> [path.name for path in result.save("my-results", plots=False)]
        ['starts.json', 'starts.txt']
    """

    files: ClassVar[Files] = Files("starts", "deqlm compare --starts", {"starts": draw_sequences})
    legend: ClassVar[tuple[tuple[str, str], ...]] = LEGEND
    columns: ClassVar[tuple[Column, ...]] = (
        name_column("solver"),
        Column("zero", lambda _, entry: f"{entry.steps_zero:.1f}"),
        Column("previous", lambda _, entry: f"{entry.steps_previous:.1f}"),
        Column("saved", lambda _, entry: f"{entry.saved:.0%}"),
        Column("time zero", lambda _, entry: duration(sum(entry.seconds_zero)), spare=1),
        Column("time previous", lambda _, entry: duration(sum(entry.seconds_previous)), spare=1),
        Column("unsolved", lambda _, entry: f"{entry.unsolved_zero}/{entry.unsolved_previous}"),
        Column("apart", lambda _, entry: amount(entry.apart)),
        last_column(lambda entry: entry.verdict),
    )
