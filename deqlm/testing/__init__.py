"""Contract suites for solvers, gradient methods and mixers of your own, as functions for your tests.

Examples:
    >>> import deqlm
    >>> deqlm.testing.check_gradient(deqlm.OneStep)
"""

from deqlm.testing.device import HostReadError, SimulatedDevice
from deqlm.testing.gradients.contract import check_gradient, gradient_checks
from deqlm.testing.graph_twin import GraphTwin, graphs_on_the_cpu
from deqlm.testing.mixers.contract import check_mixer, mixer_checks
from deqlm.testing.solvers.contract import check_solver, solver_checks

__all__ = [
    "GraphTwin",
    "HostReadError",
    "SimulatedDevice",
    "check_gradient",
    "check_mixer",
    "check_solver",
    "gradient_checks",
    "graphs_on_the_cpu",
    "mixer_checks",
    "solver_checks",
]
