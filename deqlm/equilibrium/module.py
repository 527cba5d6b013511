"""The module that solves what each call gives it, and the settings that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from torch import Tensor, nn

from deqlm.compiled.compiler import Compiler
from deqlm.compiled.settings import Compile, GivenCompile
from deqlm.equilibrium.call import solve_map
from deqlm.equilibrium.settings import GivenGradient, GivenSolver, GivenStop, check_evaluation, in_use, make_solve
from deqlm.equilibrium.transformed import summary
from deqlm.equilibrium.watch import OnEvaluation, States, Watch
from deqlm.gradients.base import GRADIENTS, Gradient
from deqlm.wrap.eager import eagerly
from deqlm.wrap.failures import Failures
from deqlm.wrap.keywords import refuse_peer_names
from deqlm.wrap.memory_cap import MemoryCap, OnCap
from deqlm.wrap.rows import Rows
from deqlm.wrap.trees import start_like
from deqlm_solvers import Adjoint, Solution, Solve, Stop
from deqlm_solvers.core.checks import explain_options, whole
from deqlm_solvers.core.peer_names import HINTS
from deqlm_solvers.core.policy import OnFailure
from deqlm_solvers.core.processes import Processes

__all__ = ["AUTO", "Equilibrium"]

T = TypeVar("T")

AUTO = Stop(rtol="auto")
"""When a module stops that was told nothing."""


class Equilibrium(nn.Module):
    """Solves z = f(z) for the f of each call: ``z = eq(f, z0, *args)``. `DEQ` is this with a layer and an injection.

    For models whose map is written in their own forward: a closure, a bound method, a module, a partial. It keeps
    settings and no layer, and any of them can be given to one call instead. Noise is drawn once per call (dropout in a
    plain function, too), and buffers of all modules that f reaches move once, whether f is the module, one of its
    methods, or a function that closes over it or names it; see `DEQ`, which is held to the same.

    With grad enabled the value carries the gradient of ``gradient`` with respect to parameters, ``args`` and whatever f
    captures. Without, it is the solver's point, found as ``evaluation`` says where that is given: grad mode decides,
    not train() or eval().

    Args:
        solver: registered name, dict with ``name`` and options, or object.
        gradient: likewise, of `GRADIENTS`.
        stop: a `Stop`, a dict of its fields, or None for ``Stop(rtol="auto")``.
        evaluation: a `Solve`, or a dict of its fields: solver and stop where grad mode is off. None is the same as with
            grad.
        batch_dims: leading dimensions that index independent rows; 0 makes one problem of the batch. None is 1; a 1-d
            state must say 0 or 1.
        on_failure: "warn" (`ConvergenceWarning`), "raise" (`ConvergenceError`) or "ignore" when a row does not
            converge; likewise for the backward solve.
        failed_grad: "drop" (rows that end NONFINITE or DIVERGED add zero to every gradient), "keep" or "raise".
        memory_cap: most bytes that a solver may hold, of the forward and of the backward solve each: a number, a text
            such as "2GiB", or None for no limit. Forecast before the solve; the map's own memory is not in it.
        on_cap: what to do beyond it: "refuse" (`MemoryError`), or "shorten" the solver's history and say so.
        process_group: of torch.distributed, or a device mesh of one dimension: the processes that end together with
            ``Stop(collective=True)``; None is all.
        compile: True, a `Compile` or a dict of its fields: solve and adjoint are compiled at the first call, which
            takes a while, and run without an interpreter from then on; see `deqlm.compile`.

    Attributes:
        last: `Solution` of the last call without its state: statuses, steps, residuals, cost, and ``adjoint`` once
            backward has run. It holds no graph and no tensor of the state, and is copied with the module. None before
            the first call.

    Raises:
        ValueError, TypeError, KeyError: an option that is unknown, out of range, or would be ignored.

    Examples:
        >>> import deqlm, torch
        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.cell = torch.nn.Linear(3, 3)
        ...         self.eq = deqlm.Equilibrium(gradient="phantom", on_failure="ignore")
        ...     def forward(self, x, steps=8):
        ...         budget = deqlm.Stop(max_iter=steps, rtol=0)  # drawn anew for each call, if you like
        ...         return self.eq(lambda z: torch.tanh(self.cell(z) + x), torch.zeros_like(x), stop=budget)
        >>> Model()(torch.ones(2, 3), steps=4).shape
        torch.Size([2, 3])
    """

    @explain_options(HINTS)
    def __init__(
        self,
        *,
        solver: GivenSolver = "anderson",
        gradient: GivenGradient = "implicit",
        stop: GivenStop | None = None,
        evaluation: Solve | Mapping[str, Any] | None = None,
        batch_dims: int | None = None,
        on_failure: OnFailure = "warn",
        failed_grad: Literal["drop", "keep", "raise"] = "drop",
        memory_cap: int | str | None = None,
        on_cap: OnCap = "refuse",
        process_group: Any = None,
        compile: GivenCompile = None,
    ) -> None:
        super().__init__()
        self.solve = make_solve(solver, stop, AUTO)
        self.gradient = GRADIENTS.make(gradient)
        self.gradient.check(self.solve)
        self.evaluation = check_evaluation(evaluation, self.gradient, self.solve)
        self.failures = Failures(on_failure, failed_grad)
        self.cap = MemoryCap.of(memory_cap, on_cap)
        settings = Compile.of(compile)
        self.compiler = None if settings is None else Compiler(settings)
        if batch_dims is not None:
            whole("batch_dims", batch_dims, 0)
        self.batch_dims = batch_dims
        self.process_group = Processes(process_group)
        self.last: Solution | None = None

    @eagerly
    def forward(
        self,
        f: Callable[..., Any],
        z0: Any,
        *args: Any,
        start: Any = None,
        solver: GivenSolver | None = None,
        stop: GivenStop | None = None,
        gradient: GivenGradient | None = None,
        scale: float | Tensor | None = None,
        token_mask: Tensor | None = None,
        with_stats: bool = False,
        states: Sequence[int] | States | None = None,
        on_evaluation: OnEvaluation | None = None,
        on_backward: Callable[[Adjoint], object] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the fixed point of ``f(z, *args, **kwargs)``, or ``(fixed point, Solution)``.

        Args:
            f: maps a state to a state of the same structure, shapes, dtypes and device. It must not write into its
                argument, and should not mix rows.
            z0: the state to start from; a tensor or a tree of tensors, floating point or complex. Never written to.
            *args: further arguments of f, given at every evaluation. Tensors whose first dimensions are those of the
                batch are per row: give inputs here rather than capture them, so that a row with NaN inputs can be kept
                out of shared gradients.
            start: where this call starts, in place of z0, whose structure and shape it has, or with dimensions of 1
                that are repeated.
            solver: in place of the stored one, for this call.
            stop: likewise; all fields that it does not name have `Stop`'s defaults. ``Stop(max_iter=k, rtol=0)`` draws
                a budget, and ``Stop(max_iter=0)`` leaves the gradient's steps alone to move the start.
            gradient: likewise.
            scale: s of the tolerance ``atol + rtol * max(||f(z)||, s)``: a number, or one per row.
            token_mask: bool, batch shape + (L,), True where a token counts; for ``Stop(per="token")``.
            with_stats: also return the `Solution`, whose ``adjoint`` is filled in by backward.
            states: numbers of evaluations after which the point is kept in `Solution.states`, or `States`, which says
                how gradients reach them.
            on_evaluation: called after each evaluation of the solve with (k, z, f(z)), k from 1, without graphs; an
                error in it ends the solve. With ``states`` or this, rows that are done stay in the batch.
            on_backward: called with the `Adjoint` when a backward solve has been made (`Implicit`, `Neumann`, `Shine`
                that refines; with grad, refused beside methods that solve nothing in backward).
            **kwargs: further keywords of f.

        Raises:
            TypeError, ValueError, KeyError: bad input, an unknown option, a pair that does not fit, or an f that
                changes structure, shape, dtype or device.
            ConvergenceError: a row failed and a policy is "raise".
            RuntimeError: parts of f talk to other processes, which would not make equally many evaluations; or the call
                is recorded by torch.jit.trace, make_fx or torch.export, or transformed by torch.func.
        """
        if kwargs:
            refuse_peer_names(f, kwargs)
        how, method = self.settings(solver, stop, gradient)
        rows = Rows(z0 if start is None else start_like(start, z0), self.batch_dims)
        more: dict[str, Any] = {"scale": scale, "token_mask": token_mask, "cap": self.cap}
        more["watch"], more["group"] = Watch.of(states, on_evaluation), self.process_group.group
        more["compiler"] = self.compiler
        sol = solve_map(f, rows, args, kwargs, how, method, self.failures.of_call(on_backward), **more)
        self.keep(sol)
        return (sol.z, sol) if with_stats else sol.z

    if TYPE_CHECKING:  # that of nn.Module takes and returns anything

        @overload
        def __call__(
            self, f: Callable[..., Any], z0: T, *args: Any, with_stats: Literal[False] = ..., **kwargs: Any
        ) -> T: ...

        @overload
        def __call__(
            self, f: Callable[..., Any], z0: T, *args: Any, with_stats: Literal[True], **kwargs: Any
        ) -> tuple[T, Solution]: ...

        @overload
        def __call__(
            self, f: Callable[..., Any], z0: T, *args: Any, with_stats: bool, **kwargs: Any
        ) -> T | tuple[T, Solution]: ...

        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def settings(
        self, solver: GivenSolver | None, stop: GivenStop | None, gradient: GivenGradient | None
    ) -> tuple[Solve, Gradient]:
        """Return the solve and the gradient method of one call, in the grad mode of now; see `in_use`."""
        return in_use((self.solve, self.gradient, self.evaluation), solver, stop, gradient)

    def keep(self, sol: Solution) -> None:
        """Make ``sol`` the last one."""
        # nn.Module's own way looks for a parameter, a module and a buffer in it
        self.__dict__["last"] = summary(sol)

    def extra_repr(self) -> str:
        told = f"solver={self.solve.solver!s}, stop={self.solve.stop!s}, gradient={self.gradient!s}"
        return told if self.evaluation is None else f"{told}, evaluation={self.evaluation!s}"
