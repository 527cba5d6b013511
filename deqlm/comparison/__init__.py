"""Compare solvers, gradient methods and starts on problems with known answers and on your own map.

Examples:
    >>> from deqlm.comparison import compare
    >>> result = compare(["two_cycle"], ["fixed_point", "anderson"], repeats=1)
    >>> [entry.outcome for entry in result["two_cycle"].entries]
    ['unsolved', 'solved']
"""

from deqlm.comparison.gradients import GradientComparison, compare_gradients
from deqlm.comparison.literature import LiteratureComparison, compare_literature
from deqlm.comparison.problem import PROBLEMS, TOLERANCES, Case, Problem, Setting, register_problem
from deqlm.comparison.problems import DEFAULT, QUICK, UserProblem
from deqlm.comparison.problems.sequences import SEQUENCES, Sequence, UserSequence
from deqlm.comparison.result import Comparison, Entry, ProblemResult
from deqlm.comparison.runner import compare
from deqlm.comparison.starts import StartComparison, compare_starts

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
    "Setting",
    "StartComparison",
    "UserProblem",
    "UserSequence",
    "compare",
    "compare_gradients",
    "compare_literature",
    "compare_starts",
    "register_problem",
]
