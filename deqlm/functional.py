"""The functional interface: solve z = f(z) for a tensor or a tree, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from deqlm.equilibrium.call import solve_map
from deqlm.gradients.base import GRADIENTS, Gradient
from deqlm.wrap.eager import eagerly
from deqlm.wrap.failures import Failures
from deqlm.wrap.memory_cap import MemoryCap, OnCap
from deqlm.wrap.rows import Rows
from deqlm_solvers import Solution, Solve, Solver, Stop
from deqlm_solvers.core.checks import explain_options
from deqlm_solvers.core.peer_names import HINTS
from deqlm_solvers.core.policy import OnFailure

__all__ = ["solve"]


@eagerly
@explain_options(HINTS)
def solve(
    f: Callable[..., Any],
    z0: Any,
    *,
    args: tuple[Any, ...] = (),
    solver: str | Mapping[str, Any] | Solver = "anderson",
    stop: Stop | Mapping[str, Any] | None = None,
    gradient: str | Mapping[str, Any] | Gradient = "implicit",
    batch_dims: int | None = None,
    scale: float | Tensor | None = None,
    token_mask: Tensor | None = None,
    on_failure: OnFailure = "warn",
    failed_grad: str = "drop",
    memory_cap: int | str | None = None,
    on_cap: OnCap = "refuse",
) -> Solution:
    """Solve z = f(z, *args) for a tensor or a tree of tensors, every row on its own.

    With grad enabled the returned ``z`` carries the gradient of ``gradient`` with respect to parameters, ``args`` and
    whatever f captures; under ``torch.no_grad()`` it is the solver's point. In a child that was forked after threads
    had solved, a solve hangs as torch's own matrix products do; start such processes by "spawn". `Equilibrium` is the
    same as a module that keeps its settings.

    Args:
        f: maps a state to a state of the same structure, shapes, dtypes and device. Dropout is drawn once per call, and
            buffers of modules that f is or reaches (as a method, by closure, by name) move once. It must not write
            into its argument, and should not mix rows.
        z0: start; a tensor or a tree of tensors, floating point or complex. Never written to.
        args: further arguments of f. Tensors whose first dimensions are those of the batch are per row: give inputs
            here rather than capture them, so that a row with NaN inputs can be kept out of shared gradients.
        solver: a registered name, a dict with ``name`` and options, or an object.
        stop: when to end, a `Stop` or a dict of its fields; None is ``Stop()`` (100 evaluations, rtol 1e-4).
        gradient: likewise, of `GRADIENTS`.
        batch_dims: leading dimensions that index independent rows. None is 1, or 0 for a 0-d state; a 1-d state must
            say 0 (one problem of N unknowns) or 1 (N scalar problems).
        scale: s of the tolerance ``atol + rtol * max(||f(z)||, s)``: a number, or one per row.
        token_mask: bool, batch shape + (L,), True where a token counts; for ``Stop(per="token")``.
        on_failure: "warn", "raise" or "ignore" when a row does not converge; costs one read after the loop.
        failed_grad: "drop" (rows that end NONFINITE or DIVERGED add zero to every gradient; costs one read after the
            loop), "keep" or "raise".
        memory_cap: most bytes that a solver may hold, of the forward and of the backward solve each: a number, a text
            such as "2GiB", or None for no limit. Forecast before the solve; what f needs inside is not in it.
        on_cap: what to do beyond it: "refuse" (`MemoryError`), or "shorten" the solver's history and say so.

    Returns:
        `Solution` with ``z`` in the structure of ``z0`` and one entry per row in the batch shape.

    Raises:
        TypeError, ValueError: bad input, an unknown option, or an f that changes structure, shape, dtype or device.
        KeyError: an unknown solver or gradient name.
        ConvergenceError: a row failed and a policy is "raise".

    Examples:
        >>> import deqlm, torch
        >>> sol = deqlm.solve(torch.cos, torch.zeros(()))
        >>> round(sol.z.item(), 3), bool(sol.converged)
        (0.739, True)
    """
    if not callable(f):
        raise TypeError(f"f must be a function or a module, got {type(f).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, args=(x,), got {type(args).__name__}")
    how = Solve(solver, Stop() if stop is None else stop)
    method = GRADIENTS.make(gradient)
    method.check(how)
    failures = Failures(on_failure, failed_grad)  # type: ignore[arg-type]
    more: dict[str, Any] = {"scale": scale, "token_mask": token_mask, "cap": MemoryCap.of(memory_cap, on_cap)}
    return solve_map(f, Rows(z0, batch_dims), args, {}, how, method, failures, **more)
