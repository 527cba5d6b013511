"""Solvers for z = f(z) on rows (B, N) of torch tensors. Knows no layers, no autograd policy, no trees."""

from deqlm_solvers.core.adjoint import Adjoint
from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.options import Options, options
from deqlm_solvers.core.policy import ConvergenceError, ConvergenceWarning
from deqlm_solvers.core.registry import Registry
from deqlm_solvers.core.rule import ReadOut, Rule
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import GUARANTEES, SOLVERS, Evaluation, Map, Solver, register_solver
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.criterion import Criterion
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.loop.step_solver import StepSolver
from deqlm_solvers.memory.forecast import Forecast, forecast_solve
from deqlm_solvers.methods.alternating_anderson import AlternatingAnderson
from deqlm_solvers.methods.anderson import Anderson
from deqlm_solvers.methods.anderson_type1 import AndersonTypeI
from deqlm_solvers.methods.bracket import Bracket
from deqlm_solvers.methods.broyden import Broyden
from deqlm_solvers.methods.deer.deer import Deer
from deqlm_solvers.methods.df_sane import DFSane
from deqlm_solvers.methods.dogleg import Dogleg
from deqlm_solvers.methods.fallback import Fallback
from deqlm_solvers.methods.fixed_point import FixedPoint
from deqlm_solvers.methods.levenberg_marquardt import LevenbergMarquardt
from deqlm_solvers.methods.momentum import Momentum
from deqlm_solvers.methods.newton import Newton
from deqlm_solvers.methods.newton_krylov import NewtonKrylov
from deqlm_solvers.methods.noisy import Noisy
from deqlm_solvers.methods.pseudo_transient import PseudoTransient
from deqlm_solvers.methods.reversible import ReversibleIteration
from deqlm_solvers.solve import Solve

from deqlm_solvers import adapters  # isort: skip  (registers them; needs Solver)

__all__ = [
    "GUARANTEES",
    "SOLVERS",
    "Adjoint",
    "AlternatingAnderson",
    "Anderson",
    "AndersonTypeI",
    "Bracket",
    "Broyden",
    "ConvergenceError",
    "ConvergenceWarning",
    "Cost",
    "Criterion",
    "DFSane",
    "Deer",
    "Dogleg",
    "Evaluation",
    "Evaluator",
    "Fallback",
    "FixedPoint",
    "Forecast",
    "Layout",
    "LevenbergMarquardt",
    "Map",
    "Momentum",
    "Newton",
    "NewtonKrylov",
    "Noisy",
    "Options",
    "PseudoTransient",
    "ReadOut",
    "Registry",
    "ReversibleIteration",
    "Rule",
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
