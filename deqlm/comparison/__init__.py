"""Compare solvers, gradient methods and starts on problems with known answers and on your own map.

Examples:
    >>> from deqlm.comparison import compare
    >>> result = compare(["two_cycle"], ["fixed_point", "anderson"], repeats=1)
    >>> [entry.outcome for entry in result["two_cycle"].entries]
    ['unsolved', 'solved']
"""

from deqlm.comparison.gradients.result import GradientComparison
from deqlm.comparison.gradients.run import compare_gradients
from deqlm.comparison.literature.result import LiteratureComparison
from deqlm.comparison.literature.run import compare_literature
from deqlm.comparison.problem import PROBLEMS, Case, Problem, register_problem
from deqlm.comparison.problems import DEFAULT, QUICK, UserProblem
from deqlm.comparison.problems.sequences import SEQUENCES, Sequence, UserSequence
from deqlm.comparison.settings import TOLERANCES, Settings
from deqlm.comparison.solvers.entry import Entry, ProblemResult
from deqlm.comparison.solvers.result import Comparison
from deqlm.comparison.solvers.run import compare
from deqlm.comparison.starts.result import StartComparison
from deqlm.comparison.starts.run import compare_starts

__all__ = [
    "DEFAULT",
    "PROBLEMS",
    "QUICK",
    "SEQUENCES",
    "TOLERANCES",
    "Case",
    "Comparison",
    "Entry",
    "GradientComparison",
    "LiteratureComparison",
    "Problem",
    "ProblemResult",
    "Sequence",
    "Settings",
    "StartComparison",
    "UserProblem",
    "UserSequence",
    "compare",
    "compare_gradients",
    "compare_literature",
    "compare_starts",
    "register_problem",
]
