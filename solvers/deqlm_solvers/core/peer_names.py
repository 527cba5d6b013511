"""Names that other libraries use, and what is our equal: told where one of them is given."""

from __future__ import annotations

__all__ = ["HINTS", "NAMES"]

_STOP = "give it as stop=Stop({})"
_SOLVER = "give it to the solver, such as solver=Anderson({})"
_BACKWARD = "it belongs to the backward solve: gradient=Implicit(solve=Solve({}))"
_NORM = "it belongs to the layer, not to the solve: see deqlm.layers"

HINTS: dict[str, str] = {
    **dict.fromkeys(("rtol", "atol", "max_iter", "per", "norm", "patience"), _STOP.format("...")),
    **dict.fromkeys(("memory", "damping"), _SOLVER.format("...")),
    "tol": "give it as stop=Stop(rtol=...), or atol=",
    "max_iters": "give it as stop=Stop(max_iter=...)",
    "f_max_iter": "give it as stop=Stop(max_iter=...)",
    "f_tol": "give it as stop=Stop(rtol=...), or atol= for f_stop_mode='abs'",
    "f_stop_mode": "give stop=Stop(rtol=...) for 'rel' and Stop(rtol=0, atol=...) for 'abs'",
    "stop_mode": "give stop=Stop(rtol=...) for 'rel' and Stop(rtol=0, atol=...) for 'abs'",
    "f_solver": "it is solver=",
    "b_solver": _BACKWARD.format("solver"),
    "b_max_iter": _BACKWARD.format("solver, Stop(max_iter=...)"),
    "b_tol": _BACKWARD.format("solver, Stop(rtol=...)"),
    "b_stop_mode": f"{_BACKWARD.format('solver, stop')}, whose tolerance is relative to the incoming gradient",
    "eval_factor": "give the solve without grad whole, evaluation=Solve(solver, Stop(max_iter=...))",
    "eval_f_max_iter": "give the solve without grad whole, evaluation=Solve(solver, Stop(max_iter=...))",
    "ift": "it is gradient='implicit', the default",
    "hook_ift": "it is gradient='implicit', the default, which needs no hook",
    "grad": "it is gradient=Phantom(steps, damping), or gradient='one_step' for one step",
    "tau": "it is damping=, of gradient=Phantom(steps, damping) and of solver=FixedPoint(damping=...)",
    "core": "there is one: states on the way are states=(k, ...) of a call, whatever the solver",
    "indexing": "it is states=(k, ...) of a call, and Solution.states",
    "n_states": "it is states=(k, ...) of a call, and Solution.states",
    "gamma": "it is gamma= of deqlm.fixed_point_correction",
    "solver_kwargs": "give solver=, stop= or gradient= to the call, in place of the stored ones",
    "sradius_mode": "call deqlm.diagnose(deq, x), which tells radius and norm of the Jacobian",
    "backward_writer": "it is on_backward= of a call, which is given Solution.adjoint",
    "return_final": "give budget=Stop(max_iter=K, rtol=0) as stop, which returns the last point",
    "no_stat": "nothing is computed that is not asked for: leave with_stats away",
    "m": "it is memory=, of the solver",
    "lam": "it is ridge=, of solver=Anderson(ridge=...)",
    "beta": "it is damping=, of the solver",
    "LBFGS_thres": "it is memory=, of solver=Broyden(memory=...)",
    "ls": "it is line_search=, of solver=Broyden(line_search=...)",
    "line_search": "give it to the solver, solver=Broyden(line_search=...)",
    "norm_type": _NORM,
    "norm_clip_value": _NORM,
    "jac_loss_weight": "add the penalty to the loss: nothing of it belongs to the solve",
}
"""Option to the place where it belongs."""

NAMES: dict[str, str] = {
    "jfb": "one_step",
    "jacobian_free": "one_step",
    "hook_ift": "implicit",
    "phantom_grad": "phantom",
    "ugrad": "phantom",
    "bptt": "unrolled",
    "unroll": "unrolled",
    "fixed_point_iter": "fixed_point",
    "simple_fixed_point_iter": "fixed_point",
    "picard": "fixed_point",
    "forward_iteration": "fixed_point",
    "aa": "anderson",
    "newton_raphson": "newton",
}
"""Registered names of others to ours."""
