"""Implicit (deep-equilibrium) models in PyTorch: wrap any layer, choose a solver and a gradient, see what happened."""

from deqlm.deq import DEQ
from deqlm.fixed_point import solve
from deqlm.gradients import GRADIENTS, Gradient, Implicit, OneStep, Phantom, Unrolled, register_gradient
from deqlm_solvers import (
    SOLVERS,
    Adjoint,
    Anderson,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Cost,
    FixedPoint,
    Solution,
    Solve,
    Solver,
    Status,
    StepSolver,
    Stop,
    options,
    register_solver,
)

__version__ = "0.1.0"

__all__ = [
    "DEQ",
    "GRADIENTS",
    "SOLVERS",
    "Adjoint",
    "Anderson",
    "Broyden",
    "ConvergenceError",
    "ConvergenceWarning",
    "Cost",
    "FixedPoint",
    "Gradient",
    "Implicit",
    "OneStep",
    "Phantom",
    "Solution",
    "Solve",
    "Solver",
    "Status",
    "StepSolver",
    "Stop",
    "Unrolled",
    "options",
    "register_gradient",
    "register_solver",
    "solve",
]
