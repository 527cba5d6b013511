"""The deep-equilibrium module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from deqlm.failures import Failures
from deqlm.fixed_point import STOP_HINTS, solve_rows
from deqlm.gradients.base import GRADIENTS, Gradient
from deqlm.inject import Add, make_inject
from deqlm.noise import Replay
from deqlm.rows import RowMap, Rows, first_tensor, zeros_like_tree
from deqlm_solvers import Solve, Solver, Stop
from deqlm_solvers.checks import explain_options, whole
from deqlm_solvers.solution import OnFailure

__all__ = ["DEQ"]


class DEQ(nn.Module):
    """Wraps a layer as an implicit one: the output is the fixed point z = layer(z + x).

    The module owns the layer and nothing of a solve: no state is kept between calls, so several calls may stand in one
    graph. A graph is attached when grad mode is on, in train() and in eval() alike; under no_grad or inference_mode the
    output is the solver's point. Noise (dropout) is drawn once per call, and buffers of normalisation layers move once:
    torch's generators are put back before each evaluation, so other threads should not draw from them meanwhile. The
    layer should not mix rows: nn.TransformerEncoderLayer and nn.GRU need batch_first=True.

    Args:
        layer: module or function; the state in, the same structure and shape out.
        inject: how x enters: "add" is layer(z + u), "argument" is layer(z, u), both with u = x; an nn.Module makes
            u = module(x) once per call, which is added; an `deqlm.inject.Inject` decides itself.
        solver: registered name, dict with ``name`` and options, or object.
        gradient: likewise, of `GRADIENTS`.
        stop: a `Stop`, a dict of its fields, or None for the default.
        start: where to start: None is zeros like u; a tensor of the state's shape, with or without the batch dimensions
            (a parameter gets a gradient from `Unrolled` only); or a callable u -> state.
        batch_dims: leading dimensions that index independent rows; 0 makes one problem of the batch, which is right for
            layers that mix rows (BatchNorm in train(), the nodes of a graph). None is 1; a 1-d state must say 0 or 1.
        on_failure: "warn" (`ConvergenceWarning`), "raise" (`ConvergenceError`) or "ignore" when a row does not
            converge; likewise for the backward solve.
        failed_grad: "drop" (rows that end NONFINITE or DIVERGED add zero to every gradient), "keep" or "raise".

    Raises:
        ValueError, TypeError, KeyError: an option that is unknown, out of range, or would be ignored.

    Examples:
        >>> import deqlm, torch
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> deq = deqlm.DEQ(layer)
        >>> y, sol = deq(torch.randn(2, 5, 16), with_stats=True)
        >>> y.shape, sol.steps.shape
        (torch.Size([2, 5, 16]), torch.Size([2]))
    """

    @explain_options(STOP_HINTS)
    def __init__(
        self,
        layer: Callable[..., Any],
        *,
        inject: Literal["add", "argument"] | nn.Module = "add",
        solver: str | Mapping[str, Any] | Solver = "anderson",
        gradient: str | Mapping[str, Any] | Gradient = "implicit",
        stop: Stop | Mapping[str, Any] | None = None,
        start: Tensor | Callable[[Any], Any] | None = None,
        batch_dims: int | None = None,
        on_failure: OnFailure = "warn",
        failed_grad: Literal["drop", "keep", "raise"] = "drop",
    ) -> None:
        super().__init__()
        if not callable(layer):
            raise TypeError(f"layer must be a module or a function, got {type(layer).__name__}")
        self.layer = layer
        self.inject = make_inject(inject)
        self.solve = Solve(solver, {} if stop is None else stop)  # type: ignore[arg-type]
        self.gradient = GRADIENTS.make(gradient)
        self.gradient.check(self.solve)
        self.failures = Failures(on_failure, failed_grad)
        if batch_dims is not None:
            whole("batch_dims", batch_dims, 0)
        self.batch_dims = batch_dims
        if isinstance(start, Tensor) and not isinstance(start, nn.Parameter):
            self.register_buffer("start", start)
        elif start is None or callable(start) or isinstance(start, nn.Parameter):
            self.start = start
        else:
            raise TypeError(f"start must be None, a tensor or a callable, got {type(start).__name__}")

    def forward(
        self, x: Any, *args: Any, with_stats: bool = False, token_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Return the fixed point, or ``(fixed point, Solution)``.

        Args:
            x: input; a tensor with the batch first, or a tree of them.
            *args: further arguments of the layer, given at every evaluation; gradients reach them.
            with_stats: also return the `Solution`, whose ``adjoint`` is filled in by backward.
            token_mask: (B, L) bool, True where a token counts, for ``Stop(per="token")``; not given to the layer.
            **kwargs: further keywords of the layer, such as masks.

        Returns:
            y with the structure, shape and dtype of the state.
        """
        first = first_tensor(x)
        if first is None:
            raise TypeError(f"x must be a tensor or a tree of tensors, got {type(x).__name__}")
        inject = Replay(self.inject, first.device)
        u = inject(x)
        inject.seal()
        rows = Rows(self._start(u), self.batch_dims)
        if isinstance(self.inject, Add):
            self.inject.check(rows.shapes, u)
        layer = Replay(self.layer, rows.device)

        def prepare(x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
            return inject(x), args, kwargs

        def f(z: Any, u: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self.inject.join(layer, z, u, args, kwargs)

        rowmap = RowMap(rows, f, (x, args, kwargs), prepare, prepared=(u, args, kwargs))
        sol = solve_rows(rowmap, self.solve, self.gradient, self.failures, token_mask=token_mask)
        layer.seal()
        return (sol.z, sol) if with_stats else sol.z

    def extra_repr(self) -> str:
        return f"solver={self.solve.solver!s}, stop={self.solve.stop!s}, gradient={self.gradient!s}"

    def _start(self, u: Any) -> Any:
        start = self.start
        if start is None:
            return zeros_like_tree(u)
        if not isinstance(start, Tensor):
            return start(u)
        like = first_tensor(u)
        count = 1 if self.batch_dims is None else self.batch_dims
        batch = start.shape[:count] if like is None else like.shape[:count]
        if like is not None and start.shape == like.shape[count:]:
            return start.expand(*batch, *start.shape)
        return start if start.shape[:count] == batch else start.expand(*batch, *start.shape)
