"""What is diagnosed: a DEQ with an input or a map with a start, as a map on rows that can be solved again."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.deq import DEQ
from deqlm.diagnostics.diagnosis.masking import masked_map, masked_unknowns
from deqlm.diagnostics.diagnosis.suggestion import Suggestion, changed
from deqlm.diagnostics.diagnosis.wraps import Norm, norm_named
from deqlm.diagnostics.unchanged import Snapshot
from deqlm.gradients import GRADIENTS, Gradient
from deqlm.models import ImplicitLM
from deqlm.sequence.chunks import per_token
from deqlm.wrap.failures import Failures
from deqlm.wrap.inject import Add
from deqlm.wrap.replay import Replay
from deqlm.wrap.rows import RowMap, Rows
from deqlm_solvers import FixedPoint, Layout, Map, Solution, Solve, Stop
from deqlm_solvers.core.checks import require

__all__ = ["DEQSubject", "MapSubject", "Subject", "Watched", "model_subject"]

IGNORE = Failures("ignore", "keep")


class Watched:
    """A map on rows that may do what it likes: it gets copies, its results are copied, its last point is kept.

    Attributes:
        last: the point (B, N) of the last evaluation.
        calls: evaluations.
    """

    def __init__(self, f: Map) -> None:
        self.f = f
        self.last: Tensor | None = None
        self.calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        self.last = z.detach().clone()
        return self.f(z.clone()).clone()


class Subject(ABC):
    """What is diagnosed.

    Attributes:
        rows: how the state is packed.
        how: solver and stop under examination.
        gradient: gradient method.
        held: map on rows as a solve sees it, noise and masked tokens held where the solve does that.
        masked: which unknowns are those of masked tokens, (B, N) bool, or None.
        raw: the bare map on rows.
        layout: what the rows stand for.
        snapshot: generators and buffers before the first evaluation, so that every solve draws the noise of `held`.
    """

    rows: Rows
    how: Solve
    gradient: Gradient
    held: Watched
    masked: Tensor | None
    raw: RowMap
    layout: Layout
    snapshot: Snapshot

    @abstractmethod
    def solve(self, tried: Suggestion, start: Tensor | None = None, trace: bool = False) -> Solution:
        """Solve the way a user would, without a graph and without complaints.

        Args:
            tried: options to change.
            start: rows (B, N) to start from; None is the user's start.
            trace: keep residuals where the solver can.
        """

    def normed(self, norm: Norm) -> str | None:
        """Return the line of code that puts a norm behind f; None where this one does not apply.

        A norm of groups is for the channels of images, (B, C, H, W), the others are for the last dimension.
        """
        shape = self.rows.shapes[0]
        if any(dtype.is_complex for dtype in self.rows.dtypes) or (norm == "group_norm" and len(shape) != 4):
            return None
        return self._line(norm_named(norm, shape))

    @abstractmethod
    def _line(self, norm: str) -> str: ...

    @property
    def is_plain(self) -> bool:
        """The solve under examination is plain iteration."""
        solver = self.how.solver
        return isinstance(solver, FixedPoint) and solver.damping == 1 and solver.first_damping in (None, 1)

    @property
    def title(self) -> str:
        """The solver and its options, as a user would write them."""
        return changed({"solver": self.how.solver}).removeprefix("solver=")

    def _traced(self, how: Solve, trace: bool) -> Stop:
        return how.stop.replace(trace=True) if trace and "trace" in how.solver.honours else how.stop

    def _layout(self, token_mask: Tensor | None, scale: Any = None) -> Layout:
        rows = self.rows
        if scale is not None:
            scale = torch.as_tensor(scale, dtype=torch.float64, device=rows.device)
            scale = scale.expand(rows.batch_shape).reshape(rows.count)
        return Layout(
            leaves=rows.row_shapes,
            batch_dims=rows.batch_dims,
            scale=scale,
            token_mask=None if token_mask is None else token_mask.reshape(rows.count, token_mask.shape[-1]),
            round=rows.round if len(set(rows.dtypes)) > 1 else None,
        )


class DEQSubject(Subject):
    """A `DEQ` and the arguments of one call."""

    def __init__(
        self,
        deq: DEQ,
        x: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        token_mask: Tensor | None,
        snapshot: Snapshot,
    ) -> None:
        self.snapshot = snapshot
        self.deq = deq
        self.call = (x, args, kwargs)
        self.token_mask = token_mask
        held, _ = deq.on_rows(x, args, kwargs)
        self.rows = rows = held.rows
        self.how, self.gradient = deq.solve.resolve(rows.z0, *rows.dtypes), deq.gradient

        def bare(z: Any, u: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return deq.inject.join(deq.layer, z, u, args, kwargs)

        self.raw = RowMap(self.rows, bare, held.inputs, held.prepare, held.prepared)
        self.layout = self._layout(token_mask)
        self.masked = masked_unknowns(per_token(self.how.stop) if deq.causal else self.how.stop, self.layout, rows.z0)
        self.held = Watched(masked_map(held, self.masked, rows.z0))

    def _line(self, norm: str) -> str:
        _, args, kwargs = self.call
        one_argument = isinstance(self.deq.inject, Add) and not args and not kwargs and len(self.rows.shapes) == 1
        if one_argument and isinstance(self.deq.layer, nn.Module):
            return f"deqlm.DEQ(nn.Sequential(layer, {norm}))"
        return f"end the layer's forward with `return self.norm(z)`, where self.norm = {norm}"

    def solve(self, tried: Suggestion, start: Tensor | None = None, trace: bool = False) -> Solution:
        deq = copy.copy(tried.apply(self.deq))
        deq.failures = IGNORE
        deq.solve = Solve(deq.solve.solver, self._traced(deq.solve, trace))
        if start is not None:
            for registry in ("_buffers", "_parameters"):
                deq.__dict__[registry] = {k: v for k, v in getattr(deq, registry).items() if k != "start"}
            state = self.rows.unpack(start)
            deq.start = lambda u: state
        x, args, kwargs = self.call
        self.snapshot.restore()
        with torch.no_grad():
            return deq(x, *args, with_stats=True, token_mask=self.token_mask, **kwargs)[1]


class MapSubject(Subject):
    """A map f and a start, with the keywords of `deqlm.solve`."""

    def __init__(self, f: Callable[..., Any], z0: Any, settings: dict[str, Any], snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.f = f
        self.z0 = z0
        self.settings = settings
        stop = settings.get("stop")
        how = Solve(settings.get("solver", "anderson"), Stop() if stop is None else stop)
        self.gradient = GRADIENTS.make(settings.get("gradient", "implicit"))
        self.gradient.check(how)
        self.rows = Rows(z0, settings.get("batch_dims"))
        self.how = how.resolve(self.rows.z0, *self.rows.dtypes)
        args = tuple(settings.get("args", ()))
        self.raw = RowMap(self.rows, f, args)
        held = RowMap(self.rows, Replay(f, self.rows.device), args)
        self.layout = self._layout(settings.get("token_mask"), settings.get("scale"))
        self.masked = masked_unknowns(self.how.stop, self.layout, self.rows.z0)
        self.held = Watched(masked_map(held, self.masked, self.rows.z0))

    def _line(self, norm: str) -> str:
        return f"norm = {norm}; deqlm.solve(lambda z: norm(f(z)), z0)"

    def solve(self, tried: Suggestion, start: Tensor | None = None, trace: bool = False) -> Solution:
        how = Solve(tried.options.get("solver", self.how.solver), tried.options.get("stop", self.how.stop))
        settings: Mapping[str, Any] = {
            **self.settings,
            **tried.options,
            "stop": self._traced(how, trace),
            "on_failure": "ignore",
            "failed_grad": "keep",
        }
        bound = Suggestion("", {}, tried.wrap).apply(self.f)
        z0 = self.z0 if start is None else self.rows.unpack(start)
        self.snapshot.restore()
        with torch.no_grad():
            return bound(z0, **settings)


def model_subject(model: ImplicitLM, ids: Tensor, mask: Tensor | None, snapshot: Snapshot) -> MapSubject:
    """Return the map of a language model on a text, solved as the model evaluates and generates.

    Raises:
        ValueError: the explicit twin, which solves nothing.
    """
    require(model.backbone.implicit, "target", "an explicit model", "an implicit one; this one solves nothing")
    e = model.dropout(model.embedding(ids))
    # derivatives are by the state alone
    context = replace(model.backbone.open(e, mask), constant=True)
    u = model.backbone.project(e, context)
    stop = per_token(model.no_grad.stop)
    settings = {"solver": model.no_grad.solver, "stop": stop, "gradient": model.gradient, "batch_dims": 1}
    settings |= {} if mask is None or stop.per != "token" else {"token_mask": mask}
    z0 = torch.zeros_like(e, dtype=torch.promote_types(e.dtype, torch.float32))
    return MapSubject(lambda z: model.backbone(z, u, context), z0, settings, snapshot)
