"""Implicit (deep-equilibrium) models in PyTorch: wrap any layer, choose a solver and a gradient, see what happened."""

from deqlm.deq import DEQ
from deqlm.diagnostics import (
    Diagnosis,
    GradientAudit,
    MemoryForecast,
    audit_gradient,
    diagnose,
    forecast_memory,
)
from deqlm.fixed_point import solve
from deqlm.gradients import GRADIENTS, Gradient, Implicit, OneStep, Phantom, Unrolled, register_gradient
from deqlm.memory_cap import within_memory
from deqlm.modes import Chunked, Sequential, Simultaneous
from deqlm_solvers import (
    SOLVERS,
    Adjoint,
    Anderson,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Cost,
    Fallback,
    FixedPoint,
    Forecast,
    Newton,
    NewtonKrylov,
    Solution,
    Solve,
    Solver,
    Status,
    StepSolver,
    Stop,
    forecast_solve,
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
    "Chunked",
    "ConvergenceError",
    "ConvergenceWarning",
    "Cost",
    "Diagnosis",
    "Fallback",
    "FixedPoint",
    "Forecast",
    "Gradient",
    "GradientAudit",
    "Implicit",
    "MemoryForecast",
    "Newton",
    "NewtonKrylov",
    "OneStep",
    "Phantom",
    "Sequential",
    "Simultaneous",
    "Solution",
    "Solve",
    "Solver",
    "Status",
    "StepSolver",
    "Stop",
    "Unrolled",
    "audit_gradient",
    "diagnose",
    "forecast_memory",
    "forecast_solve",
    "options",
    "register_gradient",
    "register_solver",
    "solve",
    "within_memory",
]
