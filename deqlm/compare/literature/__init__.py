"""The problems of the literature, solved by everybody: `deqlm compare --suite literature`."""

from deqlm.compare.literature.result import LiteratureComparison, LiteratureEntry, LiteratureRow
from deqlm.compare.literature.run import compare_literature

__all__ = ["LiteratureComparison", "LiteratureEntry", "LiteratureRow", "compare_literature"]
