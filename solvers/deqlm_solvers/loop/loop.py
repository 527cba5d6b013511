"""The one fixed-point loop."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import torch
from torch import Tensor

from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.processes import Processes
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Map
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.backend import Backend
from deqlm_solvers.loop.criterion import warn_below_floor
from deqlm_solvers.loop.evaluator import Evaluator, check_start
from deqlm_solvers.loop.method import Method
from deqlm_solvers.loop.native_backend import NativeBackend
from deqlm_solvers.loop.program import program_declines, run_program
from deqlm_solvers.loop.torch_backend import TorchBackend
from deqlm_solvers.loop.triton_backend import TritonBackend

__all__ = ["ENGINES", "run", "unmoved"]

ENGINES: dict[str, type[Backend]] = {"cpp": NativeBackend, "triton": TritonBackend}
"""Engines beside torch operations, by the name that a method's option ``impl`` asks for them; "auto" tries them all."""


def run(method: Method, f: Map, z0: Tensor, stop: Stop, layout: Layout, graph: bool = False) -> Solution:
    """Iterate ``method`` from ``z0`` (B, N) until ``stop`` ends it; see `Solver.solve`.

    Args:
        method: the update rule.
        f: the map. One with an attribute ``program`` brings a compiled loop; see `run_program`.
        z0: start, floating point.
        stop: the stopping rule.
        layout: what rows stand for.
        graph: keep the graph of all steps: the point is the last one and carries it, provided that the method is
            differentiable, but for rows that end NONFINITE or DIVERGED.
    """
    check_start(z0)
    if stop.max_iter == 0:
        return unmoved(z0)
    if not graph and getattr(f, "program", None) is not None and not program_declines(method, stop, layout, z0):
        return run_program(method, f, z0, stop, layout)
    evaluator = Evaluator(f, z0, layout.round, record=method.differentiates, looks=stop.check_every > 0)
    if stop.rtol < evaluator.eps:
        warn_below_floor(stop, evaluator.autocast or z0.dtype)
    quiet = nullcontext() if evaluator.autocast is None else torch.autocast(z0.device.type, enabled=False)
    with torch.set_grad_enabled(graph), quiet:
        z = z0.to(evaluator.inner, copy=True, memory_format=torch.contiguous_format)
        backend = choose_backend(method, evaluator, stop, layout, z)
        compact = stop.compact and not (stop.is_budget or stop.collective or graph)
        together = (layout.together or Processes()) if stop.collective else None
        for k in range(stop.max_iter):
            at = evaluator.at(z)
            if backend.masked is not None:
                # NaN that f makes of tokens that do not count must not reach the algebra
                at = at.held(backend.masked)
            last = k + 1 == stop.max_iter or evaluator.steps >= stop.max_iter
            z, goes_on = backend.advance(k, at, last)
            if last or not goes_on:
                if not evaluator.narrowed:
                    if stop.check_every and not graph and _anywhere(backend.apart(at.z), together, z):
                        backend.review(evaluator.widen(backend.points()), take_up=False)
                    break
                # a row that left was tested while others were elsewhere, and f may mix rows more weakly than a probe
                # sees
                z, compact = backend.points(), False
                if not backend.review(evaluator.widen(z), take_up=not last):
                    break
            elif compact and (rows := backend.rows_to_keep()) is not None:
                compact = evaluator.narrow(rows, at)
                if compact:
                    z = backend.narrow(rows, z)
        if stop.is_budget:
            z = z.to(z0.dtype).to(evaluator.inner)
        sol = backend.finish(z, evaluator.cost, keep_last=graph)
    return sol if sol.z.dtype == z0.dtype else sol.replace(z=sol.z.to(z0.dtype))


def _anywhere(here: bool, together: Processes | None, z: Tensor) -> bool:
    return here if together is None else together.any(here, z.device)


def unmoved(z0: Tensor) -> Solution:
    """Return the solution of ``Stop(max_iter=0)``: the start ``z0`` (B, N), of which nothing is known."""
    check_start(z0)
    unknown = torch.full((z0.shape[0],), torch.inf, dtype=torch.float64, device=z0.device)
    status = torch.where(z0.isfinite().all(1), int(Status.BUDGET), int(Status.NONFINITE)).to(torch.int8)
    steps = torch.zeros_like(status, dtype=torch.int64)
    return Solution(z=z0.detach().clone(), residual=unknown, relative=unknown, steps=steps, status=status)


def choose_backend(method: Method, evaluator: Evaluator, stop: Stop, layout: Layout, z: Tensor) -> Backend:
    """Return the first engine that the method's option ``impl`` allows and that does not decline, else torch's.

    Raises:
        ValueError: the engine was asked for by name and declines.
    """
    for engine in ENGINES.values():
        if (known := engine.again(method, evaluator, stop, layout, z)) is not None:
            return known
    asked, impl = method, getattr(method, "impl", "torch")
    fit = method.fitted if method.native_rule() is None else functools.partial(_fitted, method)
    method = fit(z.shape[1], stop.max_iter)
    for name, engine in ENGINES.items():
        if impl not in ("auto", name):
            continue
        why = engine.declines(method, stop, layout, z)
        if not why:
            backend = engine(method, evaluator, stop, layout, z)
            engine.remember(asked, backend, evaluator, layout, z)
            return backend
        if impl == name:
            raise ValueError(f"impl={name!r} is not possible here: {why}; use impl='auto' or 'torch'")
    return TorchBackend(method, evaluator, stop, layout, z)


@functools.lru_cache(maxsize=64)
def _fitted(method: Method, unknowns: int, max_iter: int) -> Method:
    """Return `StepSolver.fitted`, made once, of a method that engines know, whose options are numbers and names."""
    return method.fitted(unknowns, max_iter)
