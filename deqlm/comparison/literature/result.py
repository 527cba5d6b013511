"""What a run over the problems of the literature returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deqlm.comparison.literature.entry import LiteratureRow
from deqlm.comparison.literature.table import LEGEND, table_blocks
from deqlm.comparison.record import Files
from deqlm.comparison.result import Result

__all__ = ["LiteratureComparison"]


@dataclass
class LiteratureComparison(Result[LiteratureRow]):
    """Result of `compare_literature`: a table (`str`), plain data (`to_dict`), files (`save`), problems by label."""

    files: ClassVar[Files] = Files("literature", "deqlm compare --suite literature")
    legend: ClassVar[tuple[tuple[str, str], ...]] = LEGEND
    live: ClassVar[bool] = False

    @property
    def solvers(self) -> list[str]:
        """Labels of all solvers, in the order asked for."""
        return self.contenders

    def blocks(self, width: int) -> list[str]:
        return table_blocks(self.problems, self.solvers, width)
