"""Compare solvers, and gradient methods, on problems with known answers and on your own map.

Examples:
    >>> from deqlm.compare import compare
    >>> result = compare(["two_cycle"], ["fixed_point", "anderson"], repeats=1)
    >>> [entry.outcome for entry in result["two_cycle"].entries]
    ['unsolved', 'solved']
"""

from deqlm.compare.gradients import GradientComparison, compare_gradients
from deqlm.compare.problem import PROBLEMS, TOLERANCES, Case, Problem, Setting, register_problem
from deqlm.compare.problems import DEFAULT, QUICK, UserProblem
from deqlm.compare.result import Comparison, Entry, ProblemResult
from deqlm.compare.runner import compare

__all__ = [
    "DEFAULT",
    "PROBLEMS",
    "QUICK",
    "TOLERANCES",
    "Case",
    "Comparison",
    "Entry",
    "GradientComparison",
    "Problem",
    "ProblemResult",
    "Setting",
    "UserProblem",
    "compare",
    "compare_gradients",
    "register_problem",
]
