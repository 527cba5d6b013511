"""The names of torchdeq 0.1.0: change one import, ``from deqlm.compat.torchdeq import get_deq``."""

from deqlm.compat.torchdeq.arguments import add_deq_args
from deqlm.compat.torchdeq.core import DEQBase, DEQIndexing, DEQSliced, get_deq, register_deq, reset_deq
from deqlm.compat.torchdeq.dropout import (
    VariationalDropout,
    VariationalDropout1d,
    VariationalDropout2d,
    VariationalDropout3d,
    VariationalDropToken1d,
    VariationalDropToken2d,
    VariationalDropToken3d,
    reset_dropout,
)
from deqlm.compat.torchdeq.loss import fp_correction, jac_reg, power_method, register_weight_func
from deqlm.compat.torchdeq.memory import mem_gc
from deqlm.compat.torchdeq.norm import apply_norm, register_norm, register_norm_module, remove_norm, reset_norm
from deqlm.compat.torchdeq.settings import Settings
from deqlm.compat.torchdeq.solvers import (
    anderson_solver,
    broyden_solver,
    fixed_point_iter,
    get_solver,
    register_solver,
    simple_fixed_point_iter,
)
from deqlm.compat.torchdeq.watch import SolverStat, solver_stat_from_final_step

__all__ = [
    "DEQBase",
    "DEQIndexing",
    "DEQSliced",
    "Settings",
    "SolverStat",
    "VariationalDropToken1d",
    "VariationalDropToken2d",
    "VariationalDropToken3d",
    "VariationalDropout",
    "VariationalDropout1d",
    "VariationalDropout2d",
    "VariationalDropout3d",
    "add_deq_args",
    "anderson_solver",
    "apply_norm",
    "broyden_solver",
    "fixed_point_iter",
    "fp_correction",
    "get_deq",
    "get_solver",
    "jac_reg",
    "mem_gc",
    "power_method",
    "register_deq",
    "register_norm",
    "register_norm_module",
    "register_solver",
    "register_weight_func",
    "remove_norm",
    "reset_deq",
    "reset_dropout",
    "reset_norm",
    "simple_fixed_point_iter",
    "solver_stat_from_final_step",
]
