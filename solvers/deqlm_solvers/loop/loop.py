"""The one fixed-point loop."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from deqlm_solvers.core.layout import Frame
from deqlm_solvers.core.solution import Cost, Solution
from deqlm_solvers.core.solver import Map
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.evaluator import CountedMap, check_start
from deqlm_solvers.loop.method import Method
from deqlm_solvers.loop.native_backend import FusedPace, why_not_fused
from deqlm_solvers.loop.torch_backend import Pace, TorchPace

__all__ = ["drive", "iterate"]


def drive(solver: Method, f: Map, z0: Tensor, stop: Stop, frame: Frame) -> Solution:
    """Iterate ``solver`` from ``z0`` (B, N) until ``stop`` ends it, without a graph; see `Solver.solve`."""
    with torch.no_grad():
        last, pace, cost = iterate(solver, f, z0, stop, frame)
        sol = pace.close(last, cost)
    return sol if sol.z.dtype == z0.dtype else sol.replace(z=sol.z.to(z0.dtype))


def iterate(solver: Method, f: Map, z0: Tensor, stop: Stop, frame: Frame) -> tuple[Tensor, Pace, Cost]:
    """Run the loop in the caller's grad mode; return the last point, the pace that closes the solve, and the cost.

    With grad enabled the last point carries the graph of all steps, provided that the solver is differentiable.
    """
    check_start(z0)
    evaluate = CountedMap(f, z0, frame.snap, record=solver.differentiates)
    warn_below_floor(stop, evaluate.autocast or z0.dtype)
    if evaluate.autocast is None:
        return _loop(solver, evaluate, z0, stop, frame)
    with torch.autocast(z0.device.type, enabled=False):
        return _loop(solver, evaluate, z0, stop, frame)


def _loop(solver: Method, evaluate: CountedMap, z0: Tensor, stop: Stop, frame: Frame) -> tuple[Tensor, Pace, Cost]:
    z = z0.to(evaluate.inner, copy=True, memory_format=torch.contiguous_format)
    pace = set_pace(solver, evaluate, stop, frame, z)
    compact = stop.compact and not stop.is_budget and not torch.is_grad_enabled()
    for k in range(stop.max_iter):
        at = pace.held(evaluate(z))
        last = k + 1 == stop.max_iter or evaluate.steps >= stop.max_iter
        z, goes_on = pace.take(k, at, last)
        if last or not goes_on:
            if not evaluate.narrowed:
                if stop.check_every and not torch.is_grad_enabled() and pace.apart(at.z):
                    pace.review(evaluate.widen(pace.points()), take_up=False)
                break
            # a row that left was tested while others were elsewhere, and f may mix rows more weakly than a probe sees
            z, compact = pace.points(), False
            if not pace.review(evaluate.widen(z), take_up=not last):
                break
        elif compact and (rows := pace.leaving()) is not None:
            compact = evaluate.narrow(rows, at)
            if compact:
                z = pace.narrow(rows, z)
    if stop.is_budget:
        z = z.to(z0.dtype).to(evaluate.inner)
    return z, pace, evaluate.cost


def set_pace(solver: Method, evaluate: CountedMap, stop: Stop, frame: Frame, z: Tensor) -> Pace:
    """Return the fused step where the solver, the machine and the option ``impl`` allow it, else torch operations.

    Raises:
        ValueError: ``impl="cpp"`` where it cannot be.
    """
    solver = solver.fitted(z.shape[1], stop.max_iter)
    impl = getattr(solver, "impl", "torch")
    if impl != "torch":
        kernel = solver.kernel()
        why = why_not_fused(kernel, stop, z)
        if not why and kernel is not None:
            return FusedPace(kernel, stop, frame, z, evaluate.eps)
        if impl == "cpp":
            raise ValueError(f"impl='cpp' is not possible here: {why}; use impl='auto' or 'torch'")
    return TorchPace(solver, evaluate, stop, frame, z)


def warn_below_floor(stop: Stop, dtype: torch.dtype) -> None:
    """Warn when ``rtol`` asks for more digits than ``dtype`` has and ``atol`` does not help."""
    floor = torch.finfo(dtype).eps
    if stop.atol == 0 and 0 < stop.rtol < floor:
        name = str(dtype).removeprefix("torch.")
        text = f"rtol={stop.rtol:g} is below what {name} resolves ({floor:.1g}); rows may not converge"
        warnings.warn(text, UserWarning, stacklevel=2)
