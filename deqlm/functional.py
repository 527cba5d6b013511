"""The functional interface: solve z = f(z), or F(z) = 0, for a tensor or a tree, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deqlm.equilibrium.call import solve_map
from deqlm.equilibrium.settings import kept_solve
from deqlm.equilibrium.watch import OnEvaluation, States, Watch
from deqlm.gradients.base import GRADIENTS, Gradient
from deqlm.gradients.implicit import Implicit
from deqlm.wrap.eager import eagerly
from deqlm.wrap.failures import Failures
from deqlm.wrap.memory_cap import MemoryCap, OnCap
from deqlm.wrap.rows import Rows
from deqlm.wrap.trees import tree_less
from deqlm_solvers import Adjoint, Fallback, Newton, NewtonKrylov, Solution, Solve, Solver, Stop
from deqlm_solvers.core.checks import explain_options
from deqlm_solvers.core.peer_names import HINTS
from deqlm_solvers.core.policy import OnFailure

__all__ = ["root", "solve"]

DENSE = 64
"""Most unknowns of a row for which a root is searched with whole Jacobians."""
SMALL = Fallback("dogleg", "newton", "newton_krylov", "broyden")
LARGE = Fallback("newton_krylov", "broyden", "anderson")
DEFAULT = Stop()
BACKWARD = Stop(max_iter=200, rtol="auto")


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
    states: Sequence[int] | States | None = None,
    on_evaluation: OnEvaluation | None = None,
    on_backward: Callable[[Adjoint], object] | None = None,
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
        states: numbers of evaluations after which the point is kept in `Solution.states`, or `States`, which says how
            gradients reach them.
        on_evaluation: called after each evaluation of the solve with (k, z, f(z)), k from 1, without graphs; an error
            in it ends the solve. With ``states`` or this, rows that are done stay in the batch.
        on_backward: called with the `Adjoint` when a backward solve has been made; with grad, refused beside methods
            that make none.

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
    how = kept_solve(solver, DEFAULT if stop is None else stop)
    method = GRADIENTS.make(gradient)
    method.check(how)
    failures = Failures(on_failure, failed_grad, then=on_backward)  # type: ignore[arg-type]
    more: dict[str, Any] = {"scale": scale, "token_mask": token_mask, "cap": MemoryCap.of(memory_cap, on_cap)}
    more["watch"] = Watch.of(states, on_evaluation)
    return solve_map(f, Rows(z0, batch_dims), args, {}, how, method, failures, **more)


@eagerly
@explain_options(HINTS)
def root(
    F: Callable[..., Any],
    z0: Any,
    *,
    args: tuple[Any, ...] = (),
    solver: str | Mapping[str, Any] | Solver | None = None,
    stop: Stop | Mapping[str, Any] | None = None,
    gradient: str | Mapping[str, Any] | Gradient | None = None,
    batch_dims: int | None = None,
    scale: float | Tensor | None = None,
    on_failure: OnFailure = "warn",
    failed_grad: str = "drop",
) -> Solution:
    """Solve F(z, *args) = 0 for a tensor or a tree of tensors, every row on its own.

    It is `solve` of the map z - F(z), so everything said there holds, the statuses too, and ``sol.residual`` is
    ||F(z)||. A row passes when ||F(z)|| <= atol + rtol max(||z - F(z)||, s): give F in units in which its values are
    about as large as those of z, or ``stop`` and ``scale`` of your own. The gradient is that of the implicit function
    theorem.

    Args:
        F: maps a state to a value of the same structure, shapes, dtypes and device.
        z0: start; Newton's methods find a root near it.
        args: further arguments of F; see `solve`.
        solver: a registered name, a dict with ``name`` and options, or an object. None tries methods of Newton's type
            one after another on the rows that need them, and `Solution.picked` tells which one solved a row: up to 64
            unknowns a row "dogleg", "newton", "newton_krylov", "broyden", beyond that "newton_krylov", "broyden",
            "anderson".
        stop: when to end, a `Stop` or a dict of its fields; None is rtol 1e-8 and atol 1e-10, or 8 eps of the dtype
            where that is more, and 100 evaluations with 20 more for every unknown of a row up to 64 (products with the
            Jacobian are evaluations), by each method.
        gradient: likewise, of `GRADIENTS`; None is `Implicit`, by LU up to 64 unknowns a row, else by GMRES.
        batch_dims: as for `solve`.
        scale: s of the tolerance, a number or one per row.
        on_failure: as for `solve`.
        failed_grad: likewise.

    Returns:
        `Solution` with ``z`` in the structure of ``z0`` and one entry per row in the batch shape.

    Raises:
        TypeError, ValueError: bad input, an unknown option, or an F that changes structure, shape, dtype or device.
        KeyError: an unknown solver or gradient name.
        ConvergenceError: a row failed and a policy is "raise".

    Examples:
        >>> import deqlm, torch
        >>> a = torch.tensor([[2.0], [9.0]], dtype=torch.float64, requires_grad=True)
        >>> sol = deqlm.root(lambda z: z**2 - a, torch.ones_like(a))
        >>> sol.z.sum().backward()
        >>> sol.z[1].item(), round(a.grad[1].item(), 6), [sol.choices[i] for i in sol.picked]
        (3.0, 0.166667, ['dogleg', 'dogleg'])
    """
    if not callable(F):
        raise TypeError(f"F must be a function or a module, got {type(F).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, args=(x,), got {type(args).__name__}")
    rows = Rows(z0, batch_dims)
    unknowns = sum(rows.sizes)
    dense = unknowns <= DENSE
    if stop is None:
        eps = 8 * torch.finfo(rows.dtype).eps
        stop = Stop(max_iter=100 + 20 * min(unknowns, DENSE), rtol=max(1e-8, eps), atol=max(1e-10, eps))
    how = Solve((SMALL if dense else LARGE) if solver is None else solver, stop)
    backward = Newton() if dense else NewtonKrylov()
    method = Implicit(solve=Solve(backward, BACKWARD)) if gradient is None else GRADIENTS.make(gradient)
    method.check(how)
    failures = Failures(on_failure, failed_grad, problem="root", ask="deqlm.diagnose(lambda z: z - F(z), z0)")  # type: ignore[arg-type]
    sol = solve_map(partial(_map_of_root, F), rows, args, {}, how, method, failures, scale=scale)
    return sol.replace(problem="root")


def _map_of_root(F: Callable[..., Any], z: Any, *args: Any) -> Any:
    """Return the fixed-point map of a root."""
    return tree_less(z, F(z, *args))
