"""The problems of the literature, solved by everybody: `deqlm compare --suite literature`."""

from deqlm.comparison.literature.result import LiteratureComparison, LiteratureEntry, LiteratureRow
from deqlm.comparison.literature.run import compare_literature

__all__ = ["LiteratureComparison", "LiteratureEntry", "LiteratureRow", "compare_literature"]
