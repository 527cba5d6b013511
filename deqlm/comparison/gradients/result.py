"""What a comparison of gradients returns, and the columns of its table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any, ClassVar

from deqlm.comparison.gradients.plot import draw_costs
from deqlm.comparison.record import Files
from deqlm.comparison.result import Column, EntryBase, Result, Row, last_column, name_column
from deqlm.reporting.table import amount, duration, filled

__all__ = ["GradientComparison", "GradientEntry", "GradientProblem"]

LEGEND = (
    ("cosine", "with the exact gradient, a dense float64 solve with I - J^T; error: relative to its norm"),
    ("evals", "calls of f, forward and backward; vjps: times backward went through an evaluation of f"),
    ("forward", "and backward: median times; of one method the sum is what a training step pays"),
)


@dataclass
class GradientEntry(EntryBase):
    """One gradient method on one problem.

    Attributes:
        gradient: label, as one would type it.
        outcome: "ran", "raised" or "not installed".
        message: what was raised, one line.
        solver: the forward solver.
        cosine: cosine between the gradient and the exact one, over all parameters together.
        error: ||g - g_exact|| / ||g_exact||.
        evaluations: calls of f, forward and backward together.
        vjps: times backward went through an evaluation of f.
        forward, backward: seconds of each timed run.
        remark: backward solves that did not converge.
    """

    gradient: str
    outcome: str = "raised"
    message: str = ""
    solver: str = ""
    cosine: float | None = None
    error: float | None = None
    evaluations: int = 0
    vjps: int = 0
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    remark: str = ""

    @property
    def name(self) -> str:
        """Label of the gradient method."""
        return self.gradient

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Medians of the forward and of the backward times; their sum is what a training step pays."""
        if not self.forward:
            return None
        return statistics.median(self.forward), statistics.median(self.backward)


@dataclass
class GradientProblem(Row[GradientEntry]):
    """All gradient methods on one problem; fields as in `ProblemResult`, and the number of parameters."""

    parameters: int = 0
    tol: float = 0.0

    contender: ClassVar[str] = "gradient"

    def facts(self, width: int) -> list[str]:
        shape = f"  B={self.rows}, N={self.unknowns}"
        text = f"{shape}, forward tolerance {self.tol:g}, gradient of {self.parameters} numbers"
        return filled(text, width).splitlines()


def _seconds(part: int) -> Any:
    return lambda _, entry: duration(entry.seconds and entry.seconds[part])


@dataclass
class GradientComparison(Result[GradientProblem]):
    """Result of `compare_gradients`; what is not said here is as in `Comparison`.

    Attributes:
        problems: one `GradientProblem` per problem, in the order asked for.

    Examples:
        >>> from deqlm.comparison import compare_gradients
        >>> result = compare_gradients("tanh:rho=0.5,unknowns=8", "phantom,one_step", repeats=1, progress=False)
        >>> phantom, one_step = result.problems[0].entries
        >>> phantom.error < one_step.error
        True
        >>> [path.name for path in result.save("my-results", plots=False)]
        ['gradients.json', 'gradients.txt']
    """

    files: ClassVar[Files] = Files("gradients", "deqlm compare --gradients", {"gradients": draw_costs})
    legend: ClassVar[tuple[tuple[str, str], ...]] = LEGEND
    columns: ClassVar[tuple[Column, ...]] = (
        name_column("gradient"),
        Column("cosine", lambda _, entry: f"{entry.cosine:.6f}"),
        Column("error", lambda _, entry: amount(entry.error)),
        Column("evals", lambda _, entry: str(entry.evaluations)),
        Column("vjps", lambda _, entry: str(entry.vjps)),
        Column("forward", _seconds(0)),
        Column("backward", _seconds(1)),
        Column("solver", lambda _, entry: entry.solver, left=True, spare=1),
        last_column(lambda entry: entry.remark),
    )
