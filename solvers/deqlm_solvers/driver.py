"""The one fixed-point loop."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from deqlm_solvers.counted import CountedMap, check_start
from deqlm_solvers.frame import Frame
from deqlm_solvers.ledger import Ledger, open_ledger
from deqlm_solvers.solution import Cost, Solution
from deqlm_solvers.solver import Evaluation, Map, StepSolver
from deqlm_solvers.stop import Stop

__all__ = ["drive", "iterate"]


def drive(solver: StepSolver, f: Map, z0: Tensor, stop: Stop, frame: Frame) -> Solution:
    """Iterate ``solver`` from ``z0`` (B, N) until ``stop`` ends it, without a graph; see `Solver.solve`."""
    with torch.no_grad():
        last, ledger, cost = iterate(solver, f, z0, stop, frame)
        sol = ledger.close(last, cost)
    return sol.replace(z=sol.z.to(z0.dtype))


def iterate(solver: StepSolver, f: Map, z0: Tensor, stop: Stop, frame: Frame) -> tuple[Tensor, Ledger, Cost]:
    """Run the loop in the caller's grad mode; return the last point, the ledger and the cost.

    With grad enabled the last point carries the graph of all steps, provided that the solver is differentiable.
    """
    check_start(z0)
    evaluate = CountedMap(f, z0, frame.snap)
    warn_below_floor(stop, evaluate.autocast or z0.dtype)
    if evaluate.autocast is None:
        return _loop(solver, evaluate, z0, stop, frame)
    with torch.autocast(z0.device.type, enabled=False):
        return _loop(solver, evaluate, z0, stop, frame)


def _loop(
    solver: StepSolver, evaluate: CountedMap, z0: Tensor, stop: Stop, frame: Frame
) -> tuple[Tensor, Ledger, Cost]:
    z = z0.to(evaluate.inner, copy=True)
    ledger = open_ledger(stop, frame, z)
    masked = ledger.measure.masked
    state = solver.init(z)
    for k in range(stop.max_iter):
        at = evaluate(z)
        if masked is not None:
            # what f makes of a token that does not count, NaN perhaps, must not reach the method's algebra
            at = Evaluation(at.z, torch.where(masked, at.z, at.fz))
        ledger.record(k, at.detached())
        last = evaluate.calls >= stop.max_iter
        if ledger.finished(k) or (last and not ledger.steps_after_last):
            z = at.z
            break
        z_next, state = solver.step(evaluate.call, at, state)
        z = ledger.freeze(z_next, at.z)
        if z is at.fz and not z.requires_grad:
            # f may own this tensor and write its next result into it
            z = z.clone()
        if last:
            break
    if ledger.steps_after_last:
        z = z.to(z0.dtype).to(evaluate.inner)
    return z, ledger, evaluate.cost


def warn_below_floor(stop: Stop, dtype: torch.dtype) -> None:
    """Warn when ``rtol`` asks for more digits than ``dtype`` has and ``atol`` does not help."""
    floor = torch.finfo(dtype).eps
    if stop.atol == 0 and 0 < stop.rtol < floor:
        name = str(dtype).removeprefix("torch.")
        text = f"rtol={stop.rtol:g} is below what {name} resolves ({floor:.1g}); rows may not converge"
        warnings.warn(text, UserWarning, stacklevel=2)
