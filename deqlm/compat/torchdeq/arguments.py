"""The options of torchdeq on a command line."""

from __future__ import annotations

import argparse

__all__ = ["ELSEWHERE", "add_deq_args"]

ELSEWHERE = {
    **dict.fromkeys(
        ("norm_type", "norm_no_scale", "norm_clip", "norm_clip_value", "norm_target_norm", "sn_n_power_iters"),
        "it is an option of apply_norm",
    ),
    "gamma": "it is an option of fp_correction",
    **dict.fromkeys(
        ("jac_loss_weight", "jac_loss_freq", "jac_incremental"), "your loop reads it, and calls jac_reg as it says"
    ),
    "sradius_mode": "give it to the call, deq(f, z0, sradius_mode=True)",
    **dict.fromkeys(
        ("m", "lam", "LBFGS_thres", "ls", "return_final"), "give it to the call, deq(f, z0, solver_kwargs={...})"
    ),
}
"""Options that `get_deq` does not read, and who does."""


def add_deq_args(parser: argparse.ArgumentParser) -> None:
    """Add torchdeq's options, with its names and defaults, to a parser.

    Args:
        parser: gets 28 options; one that it has already is an error of argparse.

    Examples:
        >>> parser = argparse.ArgumentParser()
        >>> add_deq_args(parser)
        >>> parser.parse_args(["--f_max_iter", "12", "--grad", "5", "--ift"]).f_max_iter
        12
    """
    solver = parser.add_argument_group("solver of the equilibrium")
    for side, name, tol in (("f", "forward", 1e-3), ("b", "backward", 1e-6)):
        solver.add_argument(f"--{side}_solver", default="fixed_point_iter", help=f"{name} solver, such as anderson")
        solver.add_argument(f"--{side}_max_iter", type=int, default=40, help=f"most evaluations of the {name} solve")
        solver.add_argument(f"--{side}_tol", type=float, default=tol, help=f"tolerance of the {name} solve")
        solver.add_argument(f"--{side}_stop_mode", default="abs", help=f"test of the {name} solve: abs or rel")
    solver.add_argument("--eval_factor", type=float, default=1.0, help="evaluations in eval(), by f_max_iter")
    solver.add_argument("--eval_f_max_iter", type=int, default=0, help="evaluations in eval(), where > 0")
    solver.add_argument("--sradius_mode", action="store_true", help="take the spectral radius in validation")
    norm = parser.add_argument_group("normalised weights")
    norm.add_argument("--norm_type", default="weight_norm", help="weight_norm, spectral_norm or none")
    norm.add_argument("--norm_no_scale", action="store_true", help="do not learn the norm")
    norm.add_argument("--norm_clip", action="store_true", help="let the factor be at most norm_clip_value")
    norm.add_argument("--norm_clip_value", type=float, default=1.0, help="largest factor with norm_clip")
    norm.add_argument("--norm_target_norm", type=float, default=1.0, help="the norm where it is not learnt")
    norm.add_argument("--sn_n_power_iters", type=int, default=1, help="power iterations of spectral_norm")
    gradient = parser.add_argument_group("gradient")
    gradient.add_argument("--core", default="sliced", help="sliced or indexing: how several states are taken")
    gradient.add_argument("--ift", action="store_true", help="implicit gradient for the last state")
    gradient.add_argument("--hook_ift", action="store_true", help="the same as ift")
    gradient.add_argument("--n_states", type=int, default=1, help="states at equal distances, for several losses")
    gradient.add_argument("--indexing", type=int, nargs="+", default=[], help="states after these evaluations")
    gradient.add_argument("--gamma", type=float, default=0.8, help="weight of earlier states in fp_correction")
    gradient.add_argument("--grad", type=int, nargs="+", default=[1], help="steps of the phantom gradient")
    gradient.add_argument("--tau", type=float, default=1.0, help="damping of these steps")
    gradient.add_argument("--sup_gap", type=int, default=-1, help="every so many-th of these steps is a state")
    gradient.add_argument("--sup_loc", type=int, nargs="+", default=[], help="the steps of these numbers are states")
    penalty = parser.add_argument_group("Jacobian penalty")
    penalty.add_argument("--jac_loss_weight", type=float, default=0.0, help="weight of jac_reg in the loss")
    penalty.add_argument("--jac_loss_freq", type=float, default=0.0, help="share of steps that have it")
    penalty.add_argument("--jac_incremental", type=int, default=0, help="raise the weight by .1 after so many steps")
