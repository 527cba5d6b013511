"""Implicit (deep-equilibrium) models in PyTorch: wrap any layer, choose a solver and a gradient, see what happened."""

import importlib
import typing
from collections.abc import Callable

from deqlm._version import __version__
from deqlm.compiled.package import ExportedSolve
from deqlm.compiled.program import Compiled
from deqlm.compiled.refused import NotCompiledError
from deqlm.compiled.settings import Compile
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
from deqlm.gradients import (
    GRADIENTS,
    Gradient,
    Implicit,
    Neumann,
    OneStep,
    Phantom,
    Reversible,
    Shine,
    Unrolled,
    register_gradient,
)
from deqlm.looped.blocks import loop
from deqlm.programs.compiling import CompiledSolve, compile
from deqlm.programs.exporting import export, load_exported
from deqlm.sequence.modes import Auto, Chunked, Frontier, Sequential, Simultaneous
from deqlm.wrap.inject import Inject
from deqlm.wrap.memory_cap import within_memory
from deqlm.wrap.once import once_per_call_
from deqlm.wrap.stable_inject import StableInject
from deqlm_solvers import (
    SOLVERS,
    Adjoint,
    AlternatingAnderson,
    Anderson,
    AndersonTypeI,
    Bracket,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Cost,
    Deer,
    DFSane,
    Dogleg,
    Fallback,
    FixedPoint,
    Forecast,
    LevenbergMarquardt,
    Momentum,
    Newton,
    NewtonKrylov,
    Noisy,
    PseudoTransient,
    ReadOut,
    ReversibleIteration,
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

compare: Callable[..., typing.Any]

if not typing.TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> typing.Any:
        """Import what compares when it is asked for: it loads more than a model needs, and stands above it."""
        if name != "compare":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module("deqlm.comparison.mine").compare


__all__ = [
    "DEQ",
    "GRADIENTS",
    "SOLVERS",
    "Adjoint",
    "AlternatingAnderson",
    "Anderson",
    "AndersonTypeI",
    "Auto",
    "Bracket",
    "Broyden",
    "Chunked",
    "Compile",
    "Compiled",
    "CompiledSolve",
    "ConvergenceError",
    "ConvergenceWarning",
    "Cost",
    "DFSane",
    "Deer",
    "Diagnosis",
    "Dogleg",
    "Equilibrium",
    "ExportedSolve",
    "Fallback",
    "FixedPoint",
    "Forecast",
    "Frontier",
    "Gradient",
    "GradientAudit",
    "Implicit",
    "Inject",
    "LevenbergMarquardt",
    "MemoryForecast",
    "Momentum",
    "Monitor",
    "Neumann",
    "Newton",
    "NewtonKrylov",
    "Noisy",
    "NotCompiledError",
    "OneStep",
    "Phantom",
    "PseudoTransient",
    "ReadOut",
    "Reversible",
    "ReversibleIteration",
    "Rule",
    "Sequential",
    "Shine",
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
    "compare",
    "compile",
    "diagnose",
    "export",
    "fixed_point_correction",
    "forecast_memory",
    "forecast_solve",
    "load_exported",
    "loop",
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
