"""The forward and backward solvers of torchdeq by name: functions of (func, x0), run by solvers of this library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqlm.compat.torchdeq.watch import SolverStat, Watch
from deqlm.functional import solve
from deqlm_solvers import Anderson, Broyden, FixedPoint, Solver, Stop
from deqlm_solvers.core.checks import require, suggest

__all__ = [
    "OWN",
    "Rule",
    "anderson_solver",
    "broyden_solver",
    "fixed_point_iter",
    "get_solver",
    "register_solver",
    "rule_of",
    "simple_fixed_point_iter",
    "stopping",
]

Result = tuple[Tensor, list[Tensor], SolverStat]


@dataclass(frozen=True)
class Rule:
    """A solver of this library, and what its namesake in torchdeq returns.

    Attributes:
        solver: the solver.
        ahead: torchdeq returns a damped step with this factor behind the point that it tested; None: that point.
        tests: whether it stops by a tolerance.
    """

    solver: Solver
    ahead: float | None = None
    tests: bool = True


def fixed_point_iter(
    func: Callable[[Tensor], Tensor],
    x0: Tensor,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Sequence[int] | None = None,
    tau: float = 1.0,
    return_final: bool = False,
) -> Result:
    """Iterate z <- tau f(z) + (1 - tau) z; every row ends by its own test.

    Args:
        func: map of a state.
        x0: start, (B, ...), one problem per row; 1-d is one scalar problem per entry, 0-d is one problem.
        max_iter: evaluations, at most.
        tol: tolerance, of the undamped residual.
        stop_mode: "abs" tests ||f(z) - z||, "rel" that divided by ||f(z)||.
        indexing: return the states after these evaluations too; where a row has ended, its last.
        tau: damping in (0, 1].
        return_final: make all evaluations, and return the last point.

    Returns:
        The step behind the first point of each row that passes, else behind its best; the states asked for; and the
        numbers, see `SolverStat`.

    Raises:
        ValueError, TypeError: an option outside its range, or an f that changes shape, dtype or device.

    Examples:
        >>> z, _, info = fixed_point_iter(torch.cos, torch.zeros(1, 1), tol=1e-5)
        >>> round(z.item(), 3), info["nstep"].shape
        (0.739, torch.Size([1]))
    """
    rule = rule_of("fixed_point_iter", max_iter, {"tau": tau})
    return _run(rule, func, x0, stopping(max_iter, tol, stop_mode, final=return_final), stop_mode, indexing)


def simple_fixed_point_iter(
    func: Callable[[Tensor], Tensor],
    x0: Tensor,
    max_iter: int = 50,
    tau: float = 1.0,
    indexing: Sequence[int] | None = None,
) -> Result:
    """Take ``max_iter`` damped steps, without a test; see `fixed_point_iter`.

    Examples:
        >>> round(simple_fixed_point_iter(torch.cos, torch.zeros(1, 1), max_iter=80)[0].item(), 3)
        0.739
    """
    rule = rule_of("simple_fixed_point_iter", max_iter, {"tau": tau})
    return _run(rule, func, x0, stopping(max_iter, 0.0, "abs"), "abs", indexing)


def anderson_solver(
    func: Callable[[Tensor], Tensor],
    x0: Tensor,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Sequence[int] | None = None,
    m: int = 6,
    lam: float = 1e-4,
    tau: float = 1.0,
    return_final: bool = False,
) -> Result:
    """Solve by `deqlm.Anderson` with ``m`` points and damping ``tau``; see `fixed_point_iter`.

    ``lam`` other than 1e-4 is taken as the ridge, relative to the scaled Gram matrix; torchdeq's is absolute, which
    makes its default slower than plain iteration.

    Examples:
        >>> round(anderson_solver(torch.cos, torch.zeros(1, 1), tol=1e-6)[0].item(), 4)
        0.7391
    """
    rule = rule_of("anderson", max_iter, {"m": m, "lam": lam, "tau": tau})
    return _run(rule, func, x0, stopping(max_iter, tol, stop_mode, final=return_final), stop_mode, indexing)


def broyden_solver(
    func: Callable[[Tensor], Tensor],
    x0: Tensor,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Sequence[int] | None = None,
    LBFGS_thres: int | None = None,
    ls: bool = False,
    return_final: bool = False,
) -> Result:
    """Solve by `deqlm.Broyden` with ``LBFGS_thres`` pairs, or ``max_iter`` of them; see `fixed_point_iter`.

    The point that passes is returned, no step behind it. With ``ls`` each row searches for its own step length.

    Examples:
        >>> round(broyden_solver(torch.cos, torch.zeros(1, 1), tol=1e-6)[0].item(), 4)
        0.7391
    """
    rule = rule_of("broyden", max_iter, {"LBFGS_thres": LBFGS_thres, "ls": ls})
    return _run(rule, func, x0, stopping(max_iter, tol, stop_mode, final=return_final), stop_mode, indexing)


OWN: dict[str, dict[str, Any]] = {
    "fixed_point_iter": {"tau": 1.0},
    "simple_fixed_point_iter": {"tau": 1.0},
    "anderson": {"m": 6, "lam": 1e-4, "tau": 1.0},
    "broyden": {"LBFGS_thres": None, "ls": False},
}

_SOLVERS: dict[str, Callable[..., Result]] = {
    "anderson": anderson_solver,
    "broyden": broyden_solver,
    "fixed_point_iter": fixed_point_iter,
    "simple_fixed_point_iter": simple_fixed_point_iter,
}


def register_solver(solver_type: str, solver: Callable[..., Result]) -> None:
    """Make ``solver`` known by a name, for ``f_solver`` and ``b_solver``.

    Args:
        solver_type: the name.
        solver: called as ``solver(func, x0=z0, max_iter=, tol=, stop_mode=, **solver_kwargs)``; returns the point, a
            list and a dict.

    Raises:
        TypeError: what cannot be called.
        ValueError: the name of one of torchdeq's own.
    """
    if not callable(solver):
        raise TypeError(f"solver must be a function, got {type(solver).__name__}")
    require(solver_type not in OWN, "solver_type", solver_type, f"none of torchdeq's own, {', '.join(OWN)}")
    _SOLVERS[solver_type] = solver


def get_solver(key: str) -> Callable[..., Result]:
    """Return the solver of a name.

    Raises:
        KeyError: an unknown name; the message names the nearest one.

    Examples:
        >>> get_solver("anderson").__name__
        'anderson_solver'
    """
    if key not in _SOLVERS:
        raise KeyError(f"unknown solver {key!r}: {suggest(key, set(_SOLVERS))}")
    return _SOLVERS[key]


def rule_of(name: str, max_iter: int, options: dict[str, Any]) -> Rule:
    """Return the solver of this library for one of torchdeq's own.

    Raises:
        TypeError: an unknown option.
        ValueError: an option outside its range.
    """
    for key in options.keys() - OWN[name].keys():
        raise TypeError(f"{name} got an unknown option {key!r}: {suggest(key, set(OWN[name]))}")
    o = {**OWN[name], **options}
    if name == "anderson":
        ridge = None if o["lam"] == 1e-4 else o["lam"]
        return Rule(Anderson(memory=o["m"], damping=o["tau"], ridge=ridge), ahead=1.0)
    if name == "broyden":
        require(isinstance(o["ls"], bool), "ls", o["ls"], "True or False")
        memory = max(1, max_iter) if o["LBFGS_thres"] is None else o["LBFGS_thres"]
        return Rule(Broyden(memory=memory, line_search="armijo" if o["ls"] else None))
    plain = FixedPoint(damping=o["tau"])
    return Rule(plain, ahead=o["tau"]) if name == "fixed_point_iter" else Rule(plain, tests=False)


def stopping(max_iter: int, tol: float, stop_mode: str, *, final: bool = False) -> Stop:
    """Return the stopping rule; a tolerance of 0 and ``final`` make a budget of ``max_iter`` evaluations."""
    require(stop_mode in ("abs", "rel"), "stop_mode", stop_mode, "'abs' or 'rel'")
    require(isinstance(final, bool), "return_final", final, "True or False")
    if final or tol == 0:
        return Stop(max_iter=max_iter, rtol=0.0)
    if max_iter == 0:
        return Stop(max_iter=0)
    rtol, atol = (tol, 0.0) if stop_mode == "rel" else (0.0, tol)
    # rows that ended stay in the batch, so that every evaluation tells of all
    return Stop(max_iter=max_iter, rtol=rtol, atol=atol, compact=False)


def step_ahead(func: Callable[[Any], Any], z: Tensor, factor: float | None) -> Tensor:
    """Return the damped step behind ``z``, where it is finite, else ``z``."""
    if factor is None:
        return z
    ahead = torch.lerp(z, func(z), factor) if factor < 1 else func(z)
    return torch.where(ahead.isfinite(), ahead, z)


def _run(
    rule: Rule,
    func: Callable[[Tensor], Tensor],
    x0: Tensor,
    stop: Stop,
    stop_mode: str,
    indexing: Sequence[int] | None,
) -> Result:
    watch = Watch(func, x0.shape[0] if x0.dim() else 1, indexing or ())
    with torch.no_grad():
        sol = solve(watch, x0, solver=rule.solver, stop=stop, batch_dims=min(1, x0.dim()))
        z = step_ahead(func, sol.z, None if stop.is_budget else rule.ahead)
    states = [watch.state(place) for place in indexing or ()]
    return z, states, watch.info(stop_mode, x0.device, final=stop.is_budget)
