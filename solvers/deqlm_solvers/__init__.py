"""Solvers for z = f(z) on rows (B, N) of torch tensors. Knows no layers, no autograd policy, no trees."""

from deqlm_solvers.anderson import Anderson
from deqlm_solvers.broyden import Broyden
from deqlm_solvers.deer import Deer
from deqlm_solvers.dogleg import Dogleg
from deqlm_solvers.fallback import Fallback
from deqlm_solvers.fixed_point import FixedPoint
from deqlm_solvers.forecast import Forecast, forecast_solve
from deqlm_solvers.frame import Frame
from deqlm_solvers.newton import Newton
from deqlm_solvers.newton_krylov import NewtonKrylov
from deqlm_solvers.options import Options, options
from deqlm_solvers.registry import Registry
from deqlm_solvers.solution import Adjoint, ConvergenceError, ConvergenceWarning, Cost, Solution
from deqlm_solvers.solve import Solve
from deqlm_solvers.solver import GUARANTEES, SOLVERS, Evaluation, Map, Solver, StepSolver, register_solver
from deqlm_solvers.status import Status
from deqlm_solvers.stop import Stop

from deqlm_solvers import adapters  # isort: skip  (registers them; needs Solver)

__all__ = [
    "GUARANTEES",
    "SOLVERS",
    "Adjoint",
    "Anderson",
    "Broyden",
    "ConvergenceError",
    "ConvergenceWarning",
    "Cost",
    "Deer",
    "Dogleg",
    "Evaluation",
    "Fallback",
    "FixedPoint",
    "Forecast",
    "Frame",
    "Map",
    "Newton",
    "NewtonKrylov",
    "Options",
    "Registry",
    "Solution",
    "Solve",
    "Solver",
    "Status",
    "StepSolver",
    "Stop",
    "adapters",
    "forecast_solve",
    "options",
    "register_solver",
]
