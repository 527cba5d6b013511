"""Contract suites for solvers, gradient methods and mixers of your own, as functions for your tests.

Examples:
    >>> import deqlm
    >>> deqlm.testing.check_gradient(deqlm.OneStep)
"""

from deqlm.testing.gradients.contract import check_gradient, gradient_checks
from deqlm.testing.mixers.contract import check_mixer, mixer_checks
from deqlm.testing.solvers.contract import check_solver, solver_checks

__all__ = ["check_gradient", "check_mixer", "check_solver", "gradient_checks", "mixer_checks", "solver_checks"]
