"""The native engine inside a compiled program: the loop itself runs without an interpreter."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqlm_solvers.core.cost import Cost, Count
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.criterion import warn_below_floor
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.loop.method import Method
from deqlm_solvers.loop.native_backend import NativeBackend, described
from deqlm_solvers.loop.native_struct import NativeSolve
from deqlm_solvers.native.operators import load_operators

__all__ = ["Drive", "Recipe", "program_declines", "recipe", "run_from", "run_program"]


class Drive(ctypes.Structure):
    """The struct ``Drive`` of ops.cpp, which a program carries as a tensor of int64."""

    _fields_ = [
        ("solve", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("k", "every", "check_every", "looked", "reviews", "evaluations")),
    ]


class Recipe(ctypes.Structure):
    """The struct ``Recipe`` of whole.h: what is known of a solve before its point is."""

    _fields_ = [("solve", NativeSolve), *((name, ctypes.c_int64) for name in ("every", "check_every", "rms"))]


def program_declines(method: Any, stop: Stop, layout: Layout, z: Tensor) -> str:
    """Return why a compiled program cannot run this solve from ``z`` (B, N); empty where it can."""
    rule = getattr(method, "native_rule", None)
    if rule is None or rule() is None:
        name = getattr(method, "name", method)
        return f"solver {name!r} has no compiled step; 'fixed_point', 'anderson' and 'broyden' have"
    if getattr(method, "impl", "auto") == "torch":
        return "impl='torch' asks for steps of torch operations"
    if stop.trace:
        return "Stop(trace=True) keeps a residual of every evaluation"
    if stop.compact == "at_once":
        return "Stop(compact='at_once') takes rows out of the batch, and a program keeps its shapes"
    if layout.round is not None:
        return "the state has leaves of several dtypes"
    with torch.no_grad():
        inner = z if z.dtype == torch.float64 else z.new_empty(0, dtype=torch.float32)
        return NativeBackend.declines(method, stop, layout, inner) or load_operators().why


def run_program(method: Method, f: Any, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
    """Iterate as `deqlm_solvers.loop.loop.run` does, in one call of a compiled program; rows stay in the batch.

    Args:
        method: the update rule, with a native rule.
        f: the map; its ``program(z, drive)`` evaluates f and calls ``torch.ops.deqlm.advance`` until that says to end,
            and returns the last point. A `Count` that it has is told.
        z0: start, (B, N).
        stop: the stopping rule.
        layout: what rows stand for.
    """
    evaluator = Evaluator(f, z0, None)
    if stop.rtol < evaluator.eps:
        warn_below_floor(stop, z0.dtype)
    with torch.no_grad():
        z = z0.to(evaluator.inner, copy=True, memory_format=torch.contiguous_format)
        sol = run_from(method.fitted(z.shape[1], stop.max_iter), evaluator, f.program, z, stop, layout, z0.dtype)
    count = getattr(f, "count", None)
    if isinstance(count, Count):
        count.calls, count.rows = count.calls + sol.cost.evaluations, count.rows + sol.cost.row_evaluations
    return sol if sol.z.dtype == z0.dtype else sol.replace(z=sol.z.to(z0.dtype))


def run_from(
    method: Method,
    known: Any,
    program: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    stop: Stop,
    layout: Layout,
    dtype: torch.dtype,
) -> Solution:
    """Run a program from ``z`` (B, N), contiguous and of an inner dtype, without grad; nothing is looked at.

    Args:
        method: the update rule, fitted.
        known: says in ``eps`` what f resolves.
        program: see `run_program`.
        z: start, which the solution may share.
        stop: the stopping rule, with a number for its tolerance.
        layout: what rows stand for.
        dtype: of the state.
    """
    backend = NativeBackend(method, known, stop, layout, z)
    every = 0 if stop.is_budget or stop.test_every == "auto" else stop.test_every
    drive = torch.tensor([backend.pointer, 0, every, stop.check_every, 0, 0, 0], dtype=torch.int64, device="cpu")
    last = program(z, drive)
    if stop.is_budget and dtype != z.dtype:
        last = last.to(dtype).to(z.dtype)
    evaluations = int(drive[6])
    return backend.finish(last, Cost(evaluations, evaluations * z.shape[0]))


def recipe(method: Method, stop: Stop, z: Tensor) -> Tensor:
    """Return what ``torch.ops.deqlm.open`` must know of a solve beside the point that it starts from.

    Args:
        method: the update rule, with a native rule.
        stop: the stopping rule, with tokens along dimension 1 if any, and no weights.
        z: a start, in the shape of the state; that of others differs in the number of rows alone.
    """
    unknowns = z[0].numel()
    native = method.fitted(unknowns, stop.max_iter).native_rule()
    assert native is not None
    eps = torch.finfo(z.dtype).eps
    inner = inner_dtype(z.dtype)
    solve = NativeSolve.from_buffer_copy(described(native, stop, z.shape[0], unknowns, inner, eps, 1))
    solve.token = stop.per == "token"
    made = Recipe(solve, 0 if stop.is_budget or stop.test_every == "auto" else stop.test_every, stop.check_every)
    made.rms = stop.norm == "rms"
    return torch.frombuffer(bytearray(bytes(made)), dtype=torch.int64).clone()
