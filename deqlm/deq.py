"""The deep-equilibrium module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from deqlm.compiled.settings import GivenCompile
from deqlm.equilibrium.again import refuse_chunks, solve_again
from deqlm.equilibrium.by_graph import solve_by_graph
from deqlm.equilibrium.module import Equilibrium
from deqlm.equilibrium.rows import solve_rows
from deqlm.equilibrium.settings import GivenGradient, GivenSolver, GivenStop
from deqlm.equilibrium.watch import OnEvaluation, States, Watch
from deqlm.gradients.base import Gradient
from deqlm.gradients.collective import processes_in_step
from deqlm.sequence.causal import CausalCall
from deqlm.sequence.chunks import per_token, solve_chunks
from deqlm.sequence.modes import MODES, Mode, Simultaneous
from deqlm.wrap.captured import Captured
from deqlm.wrap.eager import eagerly
from deqlm.wrap.failures import Failures
from deqlm.wrap.hidden import warn_of_hidden
from deqlm.wrap.inject import Add, make_inject, passes_on
from deqlm.wrap.keywords import refuse_peer_names
from deqlm.wrap.levels import transformed
from deqlm.wrap.memory_cap import OnCap
from deqlm.wrap.once import once_per_call_
from deqlm.wrap.part import part_of
from deqlm.wrap.replay import Replay
from deqlm.wrap.rows import RowMap, Rows
from deqlm.wrap.start import AT_ZERO, CALLED, started
from deqlm.wrap.trees import first_tensor, start_like
from deqlm_solvers import Adjoint, Solution, Solve
from deqlm_solvers.core.checks import explain_options, require
from deqlm_solvers.core.peer_names import HINTS
from deqlm_solvers.core.policy import OnFailure
from deqlm_solvers.core.processes import Processes

__all__ = ["DEQ"]

T = TypeVar("T")


class DEQ(Equilibrium):
    """Wraps a layer as an implicit one: the output is the fixed point z = layer(z + x).

    It is an `Equilibrium` with a layer and an injection. The module owns the layer and of a solve only a summary
    of the last one (`last`): several calls may stand in one graph. A graph is attached when grad mode is on, in train()
    and in eval() alike; under no_grad or inference_mode the output is the solver's point. Noise (dropout) is drawn once
    per call, and buffers of normalisation layers move once: torch's generators are put back before each evaluation, so
    other threads should not draw from them meanwhile; at the buffers of a layer in train() threads take turns. Start
    processes by "spawn" once threads have solved: in a forked child a solve hangs, as torch's own matrix products do.
    The layer should not mix rows: nn.TransformerEncoderLayer needs batch_first=True. Of one that returns more than the
    new state, ``output`` says which part that is, such as ``DEQ(nn.GRU(8, 8, batch_first=True), output=0)``.

    A layer z + F(z), such as a GPT-2 block, a ViT layer, nn.TransformerEncoderLayer(norm_first=True) or a ResNet block,
    has no fixed point in reach: its state grows, and its rows end DIVERGED, STALLED or MAX_ITER. Give it a norm after
    the sum, such as ``DEQ(nn.Sequential(layer, nn.LayerNorm(width)))``; `deqlm.diagnose` tries that and says what came
    of it.

    Args:
        layer: module or function; the state in, the same structure and shape out. A function that uses a module hides
            its parameters from the DEQ, which a warning says: give the module.
        output: position or name of the new state in what the layer returns; None where it returns nothing else. The
            layer is then ``deq.layer.layer``, a part of a module that picks.
        inject: how x enters: "add" is layer(z + u), "argument" is layer(z, u), both with u = x; an nn.Module makes
            u = module(x) once per call, which is added; an `deqlm.Inject` decides itself.
        solver: registered name, dict with ``name`` and options, or object.
        gradient: likewise, of `GRADIENTS`.
        stop: a `Stop`, a dict of its fields, or None for ``Stop(rtol="auto")``.
        evaluation: a `Solve`, or a dict of its fields: solver and stop where grad mode is off (grad mode decides, not
            train() or eval()). None is the same as with grad. Refused beside a gradient with ``same_value``.
        start: where to start: None is zeros like u; a tensor of the state's shape, with or without the batch dimensions
            (a parameter gets a gradient from `Unrolled` only); or a callable u -> state.
        batch_dims: leading dimensions that index independent rows; 0 makes one problem of the batch, which is right for
            layers that mix rows (BatchNorm in train(), the nodes of a graph). None is 1; a 1-d state must say 0 or 1.
        causal: the layer maps (B, L, ...) to (B, L, ...) and token t sees no later one: every token must pass the test,
            as with ``Stop(per="token")``, and there are modes. Each call checks it on its first 16 tokens.
        mode: how a causal layer is solved along its tokens: `Simultaneous`, `Chunked`, `Sequential`, `Frontier` or
            `Auto`, by object, name or dict. A layer with ``forward_chunk(z, u, cache) -> (out, cache)`` goes on from
            its cache; any other is evaluated on the committed prefix and the chunk, which is right and dearer.
            Arguments (B, L, ...) are cut like the input.
        on_failure: "warn" (`ConvergenceWarning`), "raise" (`ConvergenceError`) or "ignore" when a row does not
            converge; likewise for the backward solve.
        failed_grad: "drop" (rows that end NONFINITE or DIVERGED add zero to every gradient), "keep" or "raise".
        memory_cap: most bytes that a solver may hold, of the forward and of the backward solve each: a number, a text
            such as "2GiB", or None for no limit. Forecast before the solve; the layer's own memory is not in it.
        on_cap: what to do beyond it: "refuse" (`MemoryError`), or "shorten" the solver's history and say so.
        compile: True, a `Compile` or a dict of its fields: solve and adjoint become programs; see `deqlm.compile`.
        graph: calls without grad are captured as CUDA graphs, one for every shape of the input, and replayed, which
            saves the host's time for every launch. Their stop makes a known number of evaluations, a budget
            (``rtol=0``) or ``check_every=0``, the layer draws no noise, moves no buffers (eval()), and lets the host
            read nothing. Calls with grad are not captured.
        process_group: of torch.distributed, or a device mesh of one dimension: the processes that end together with
            ``Stop(collective=True)``; None is all.

    Raises:
        ValueError, TypeError, KeyError: an option that is unknown, out of range, or would be ignored.

    Examples:
        >>> import deqlm, torch
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> deq = deqlm.DEQ(layer)
        >>> y, sol = deq(torch.randn(2, 5, 16), with_stats=True)
        >>> y.shape, sol.steps.shape
        (torch.Size([2, 5, 16]), torch.Size([2]))
        >>> from deqlm.layers import Attention
        >>> causal = deqlm.DEQ(Attention(16, n_head=2), causal=True, mode=deqlm.Chunked(2))
        >>> causal(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 16])
    """

    @explain_options(HINTS)
    def __init__(
        self,
        layer: Callable[..., Any],
        *,
        output: int | str | None = None,
        inject: Literal["add", "argument"] | nn.Module = "add",
        solver: GivenSolver = "anderson",
        gradient: GivenGradient = "implicit",
        stop: GivenStop | None = None,
        evaluation: Solve | Mapping[str, Any] | None = None,
        start: Tensor | Callable[[Any], Any] | None = None,
        batch_dims: int | None = None,
        causal: bool = False,
        mode: str | Mapping[str, Any] | Mode = "simultaneous",
        on_failure: OnFailure = "warn",
        failed_grad: Literal["drop", "keep", "raise"] = "drop",
        memory_cap: int | str | None = None,
        on_cap: OnCap = "refuse",
        compile: GivenCompile = None,
        graph: bool = False,
        process_group: Any = None,
    ) -> None:
        if not callable(layer):
            raise TypeError(f"layer must be a module or a function, got {type(layer).__name__}")
        super().__init__(
            solver=solver,
            gradient=gradient,
            stop=stop,
            evaluation=evaluation,
            batch_dims=batch_dims,
            on_failure=on_failure,
            failed_grad=failed_grad,
            memory_cap=memory_cap,
            on_cap=on_cap,
            process_group=process_group,
            compile=compile,
        )
        require(not graph or self.compiler is None, "graph", graph, "False with compile")
        # two frames up: __init__ is wrapped
        warn_of_hidden("layer", layer, stacklevel=3)
        layer = part_of(layer, output)
        self.layer = once_per_call_(layer) if isinstance(layer, nn.Module) else layer
        self.inject = make_inject(inject)
        self.mode = MODES.make(mode)
        require(isinstance(causal, bool), "causal", causal, "True or False")
        if causal:
            require(batch_dims in (None, 1), "batch_dims", batch_dims, "1 with causal=True")
            for how in (self.solve, self.evaluation):
                if how is not None:
                    how.replace(stop=per_token(how.stop))
        else:
            require(self.mode == Simultaneous(), "mode", self.mode, "'simultaneous' without causal=True")
        require(isinstance(graph, bool), "graph", graph, "True or False")
        require(not (graph and causal), "graph", graph, "False with causal=True, whose chunks depend on numbers")
        self.graph, self.graphs = graph, Captured()
        self.causal = causal
        if isinstance(start, Tensor) and not isinstance(start, nn.Parameter):
            self.register_buffer("start", start)
        elif start is None or callable(start) or isinstance(start, nn.Parameter):
            warn_of_hidden("start", start, stacklevel=3)
            self.start = start
        else:
            raise TypeError(f"start must be None, a tensor or a callable, got {type(start).__name__}")

    @eagerly
    def forward(
        self,
        x: Any,
        *args: Any,
        with_stats: bool = False,
        token_mask: Tensor | None = None,
        start: Any = None,
        solver: GivenSolver | None = None,
        stop: GivenStop | None = None,
        gradient: GivenGradient | None = None,
        states: Sequence[int] | States | None = None,
        on_evaluation: OnEvaluation | None = None,
        on_backward: Callable[[Adjoint], object] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the fixed point, or ``(fixed point, Solution)``.

        Args:
            x: input; a tensor with the batch first, or a tree of them.
            *args: further arguments of the layer, given at every evaluation; gradients reach them.
            with_stats: also return the `Solution`, whose ``adjoint`` is filled in by backward.
            token_mask: (B, L) bool, True where a token counts, for ``Stop(per="token")``; not given to the layer.
            start: where this call starts, in place of the module's ``start``: the structure and shape of the state, or
                with dimensions of 1 that are repeated; not given to the layer.
            solver: in place of the module's, for this call; not given to the layer.
            stop: likewise; all fields that it does not name have `Stop`'s defaults. ``Stop(max_iter=k, rtol=0)`` draws
                a budget, and ``Stop(max_iter=0)`` leaves the gradient's steps alone to move the start.
            gradient: likewise.
            states: numbers of evaluations after which the point is kept in `Solution.states`, or `States`, which says
                how gradients reach them.
            on_evaluation: called after each evaluation of the solve with (k, z, f(z)), k from 1, without graphs; an
                error in it ends the solve. With ``states`` or this, rows that are done stay in the batch.
            on_backward: called with the `Adjoint` when a backward solve has been made (`Implicit`, `Neumann`, `Shine`
                that refines; with grad, refused beside methods that solve nothing in backward).
            **kwargs: further keywords of the layer, such as masks.

        Returns:
            y with the structure, shape and dtype of the state.

        Raises:
            TypeError, ValueError, KeyError: a start of another structure or shape; what `DEQ` refuses of options and
                of a causal layer.
            RuntimeError: parts of the layer talk to other processes, which would not make equally many evaluations; or
                the call is recorded by torch.jit.trace, make_fx or torch.export, or transformed by torch.func.
        """
        if kwargs:
            refuse_peer_names(self.layer, kwargs)
        how, method = self.settings(solver, stop, gradient)
        together = processes_in_step(self.layer, how, method, self.process_group.group)
        if together is None:
            sol = solve_again(self, x, args, how, method, token_mask, start, states, on_evaluation, kwargs)
            if sol is not None:
                self.keep(sol)
                return (sol.z, sol) if with_stats else sol.z
        failures = self.failures.of_call(on_backward, layer=self.layer, ask="deqlm.diagnose(deq, x)")
        if self.graph and not torch.is_grad_enabled():
            require(states is None and on_evaluation is None, "graph", True, "False with states or on_evaluation")
            sol = solve_by_graph(self, (x, args, kwargs, start, token_mask), how, method)
            failures.report(sol, how.stop)
            self.last = sol.without_state()
            return (sol.z, sol) if with_stats else sol.z
        rowmap, layer = self.on_rows(x, args, kwargs, start)
        watch = Watch.of(states, on_evaluation)
        with layer:
            if self.causal:
                sol = self._by_chunks(rowmap, how, method, failures, token_mask, watch, together)
            else:
                more: dict[str, Any] = {"token_mask": token_mask, "cap": self.cap, "watch": watch}
                more |= {"together": together, "compiler": self.compiler}
                sol = solve_rows(rowmap, how, method, failures, **more)
        self.keep(sol)
        return (sol.z, sol) if with_stats else sol.z

    if TYPE_CHECKING:  # that of nn.Module takes and returns anything

        @overload
        def __call__(
            self,
            x: T,
            *args: Any,
            with_stats: Literal[False] = ...,
            token_mask: Tensor | None = ...,
            start: Any = ...,
            solver: GivenSolver | None = ...,
            stop: GivenStop | None = ...,
            gradient: GivenGradient | None = ...,
            states: Sequence[int] | States | None = ...,
            on_evaluation: OnEvaluation | None = ...,
            on_backward: Callable[[Adjoint], object] | None = ...,
            **kwargs: Any,
        ) -> T: ...

        @overload
        def __call__(
            self,
            x: T,
            *args: Any,
            with_stats: Literal[True],
            token_mask: Tensor | None = ...,
            start: Any = ...,
            solver: GivenSolver | None = ...,
            stop: GivenStop | None = ...,
            gradient: GivenGradient | None = ...,
            states: Sequence[int] | States | None = ...,
            on_evaluation: OnEvaluation | None = ...,
            on_backward: Callable[[Adjoint], object] | None = ...,
            **kwargs: Any,
        ) -> tuple[T, Solution]: ...

        @overload
        def __call__(
            self,
            x: T,
            *args: Any,
            with_stats: bool,
            token_mask: Tensor | None = ...,
            start: Any = ...,
            solver: GivenSolver | None = ...,
            stop: GivenStop | None = ...,
            gradient: GivenGradient | None = ...,
            states: Sequence[int] | States | None = ...,
            on_evaluation: OnEvaluation | None = ...,
            on_backward: Callable[[Adjoint], object] | None = ...,
            **kwargs: Any,
        ) -> T | tuple[T, Solution]: ...

        def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any: ...

    def _by_chunks(
        self,
        rowmap: RowMap,
        how: Solve,
        gradient: Gradient,
        failures: Failures,
        token_mask: Tensor | None,
        watch: Watch | None,
        together: Processes | None,
    ) -> Solution:
        shapes = rowmap.rows.shapes
        require(rowmap.rows.plain, "the state", [tuple(shape) for shape in shapes], "one real tensor for causal=True")
        call = CausalCall(self.layer, self.inject, rowmap.prepared, shapes[0], rowmap.rows.device)
        several = not self.mode.one_solve(shapes[0][1])
        if not transformed():  # where values decide nothing
            call.probe(rowmap.rows.unpack(rowmap.rows.z0), chunks=several)
        how = how.replace(stop=per_token(how.stop))
        if not several:
            more: dict[str, Any] = {"token_mask": token_mask, "cap": self.cap, "watch": watch}
            more |= {"together": together, "compiler": self.compiler}
            return solve_rows(rowmap, how, gradient, failures, **more)
        refuse_chunks(self.compiler, self.mode)
        require(watch is None, "mode", self.mode, "'simultaneous' with states or on_evaluation, which see all tokens")
        return solve_chunks(
            *(rowmap, call.chunk, self.mode, how, gradient, failures),
            cache=call.cache,
            commit=False,
            token_mask=token_mask,
            cap=self.cap,
            owner=self.layer,
            together=together,
        )[0]

    def on_rows(
        self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any], start: Any = None, *, still: bool = False
    ) -> tuple[RowMap, Replay]:
        """Return the map of one call on rows, started where the call starts, and what replays the layer's noise in it.

        Args:
            x: see `forward`.
            args: likewise.
            kwargs: likewise.
            start: likewise.
            still: see `Replay`.

        Raises:
            TypeError: an ``x`` that is no tensor or tree of tensors.
            ValueError: an ``x`` or a start that cannot be a state.
            RuntimeError: the call is recorded by torch.jit.trace, make_fx or torch.export.
        """
        first = first_tensor(x)
        if first is None:
            raise TypeError(f"x must be a tensor or a tree of tensors, got {type(x).__name__}")
        inject, u = self._injected(x, first.device, still)
        name = "start" if self.start is not None else "x" if u is x else "inject(x)"
        z0 = started(self.start, u, self.batch_dims, name)
        rows = Rows(z0 if start is None else start_like(start, z0), self.batch_dims, name)
        if isinstance(self.inject, Add):
            self.inject.check(rows.shapes, u)
        default = start is None and self.start is None
        hint = AT_ZERO if default else ""
        layer = Replay(self.layer, rows.device, hint=hint, called=CALLED, still=still)

        def prepare(x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
            return inject(x), args, kwargs

        made = RowMap(
            *(rows, partial(self.inject.join, layer), (x, args, kwargs), prepare, (u, args, kwargs)),
            fixed=lambda: layer.noisy or (isinstance(inject, Replay) and inject.noisy),
            owner=self.layer,
        )
        made.bare, made.replay = partial(self.inject.join, self.layer), layer
        return made, layer

    def _injected(self, x: Any, device: torch.device, still: bool = False) -> tuple[Callable[[Any], Any], Any]:
        """Return what makes u of x, and u."""
        if passes_on(self.inject):
            return self.inject, x
        inject = Replay(self.inject, device, still=still)
        with inject:
            return inject, inject(x)
