"""Implicit (deep-equilibrium) models in PyTorch: wrap any layer, choose a solver and a gradient, see what happened."""

from deqlm._version import __version__
from deqlm.deq import DEQ
from deqlm.diagnostics import (
    Diagnosis,
    GradientAudit,
    MemoryForecast,
    Monitor,
    audit_gradient,
    diagnose,
    forecast_memory,
    monitor,
)
from deqlm.equilibrium.correction import fixed_point_correction
from deqlm.equilibrium.module import Equilibrium
from deqlm.equilibrium.watch import States
from deqlm.functional import root, solve
from deqlm.gradients import GRADIENTS, Gradient, Implicit, OneStep, Phantom, Unrolled, register_gradient
from deqlm.sequence.modes import Auto, Chunked, Frontier, Sequential, Simultaneous
from deqlm.wrap.inject import Inject
from deqlm.wrap.memory_cap import within_memory
from deqlm.wrap.once import once_per_call_
from deqlm.wrap.stable_inject import StableInject
from deqlm_solvers import (
    SOLVERS,
    Adjoint,
    Anderson,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Cost,
    Deer,
    Dogleg,
    Fallback,
    FixedPoint,
    Forecast,
    Newton,
    NewtonKrylov,
    ReadOut,
    Rule,
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

from deqlm import testing  # isort: skip  (needs what stands above)

__all__ = [
    "DEQ",
    "GRADIENTS",
    "SOLVERS",
    "Adjoint",
    "Anderson",
    "Auto",
    "Broyden",
    "Chunked",
    "ConvergenceError",
    "ConvergenceWarning",
    "Cost",
    "Deer",
    "Diagnosis",
    "Dogleg",
    "Equilibrium",
    "Fallback",
    "FixedPoint",
    "Forecast",
    "Frontier",
    "Gradient",
    "GradientAudit",
    "Implicit",
    "Inject",
    "MemoryForecast",
    "Monitor",
    "Newton",
    "NewtonKrylov",
    "OneStep",
    "Phantom",
    "ReadOut",
    "Rule",
    "Sequential",
    "Simultaneous",
    "Solution",
    "Solve",
    "Solver",
    "StableInject",
    "States",
    "Status",
    "StepSolver",
    "Stop",
    "Unrolled",
    "__version__",
    "audit_gradient",
    "diagnose",
    "fixed_point_correction",
    "forecast_memory",
    "forecast_solve",
    "monitor",
    "once_per_call_",
    "options",
    "register_gradient",
    "register_solver",
    "root",
    "solve",
    "testing",
    "within_memory",
]
