"""What a comparison of solvers returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from deqlm.comparison.record import Files
from deqlm.comparison.result import Column, Result
from deqlm.comparison.solvers.entry import ProblemResult
from deqlm.comparison.solvers.plots import draw_profile, draw_residuals
from deqlm.comparison.solvers.table import COLUMNS, LEGEND, summary
from deqlm.comparison.solvers.verdict import verdict
from deqlm.reporting.table import filled

__all__ = ["Comparison"]

FILES = Files(
    "compare",
    "deqlm compare",
    {
        "residual_evaluations": partial(draw_residuals, axis="evaluations"),
        "residual_time": partial(draw_residuals, axis="seconds"),
        "profile": draw_profile,
    },
)


@dataclass
class Comparison(Result[ProblemResult]):
    """Result of `compare`: a table (`str`), plain data (`to_dict`), files (`save`), problems by label (index).

    Attributes:
        problems: one `ProblemResult` per problem, in the order asked for.
        settings: dtype, device, batch, seed, repeats as used.
        environment: versions, hardware, commit; see `environment`.
        seconds: how long the comparison took.
        interrupted: True when it was stopped by Ctrl-C; what was done until then is there.

    Examples:
        >>> from deqlm.comparison import compare
        >>> result = compare("symmetric:rho=0.5", "fixed_point,anderson", repeats=1, progress=False)
        >>> result.solvers
        ['fixed_point', 'anderson']
        >>> counts = {entry.solver: entry.evaluations for entry in result["symmetric:rho=0.5"].entries}
        >>> counts["anderson"] < counts["fixed_point"]
        True
        >>> [path.name for path in result.save("my-results", plots=False)]
        ['compare.json', 'compare.txt']
    """

    files: ClassVar[Files] = FILES
    legend: ClassVar[tuple[tuple[str, str], ...]] = LEGEND
    columns: ClassVar[tuple[Column, ...]] = COLUMNS

    @property
    def solvers(self) -> list[str]:
        """Labels of all solvers, in the order asked for."""
        return self.contenders

    def verdict(self, width: int) -> list[str]:
        more = [summary(self.problems, self.solvers, width)] if len(self.problems) > 1 else []
        said = [filled(sentence, width) for sentence in verdict(self.problems, self.solvers)]
        return [*more, "\n".join(said)] if said else more
