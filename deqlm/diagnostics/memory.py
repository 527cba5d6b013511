"""What a call of a `DEQ` will hold: the solvers' buffers by forecast, the layer's own by one probe."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deqlm.deq import DEQ
from deqlm.diagnostics.unchanged import unchanged
from deqlm.wrap.rows import RowMap
from deqlm.wrap.trees import first_tensor
from deqlm_solvers import Forecast, Layout, Solve, forecast_solve
from deqlm_solvers.core.sizes import show_bytes
from deqlm_solvers.memory.meter import MemoryMeter

__all__ = ["MemoryForecast", "forecast_memory"]


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of one call, on top of parameters and input.

    Attributes:
        forward: the forward solver's buffers.
        backward: the backward solver's; None for gradient methods that solve nothing.
        evaluation: what f needs inside one evaluation without a graph, beyond its result; measured.
        graph: what one evaluation of f keeps for backward, its result included; measured. 0 where f has no graph.
        product: what one product with J^T needs beyond that; measured.
        graphs: evaluations of f that a call keeps in its graph, at most; None where the gradient method does not say.
        inference: most bytes of a call without grad; None where a part is unknown.
        training: most bytes of a call with grad and its backward; None where a part is unknown.

    On a CUDA device the totals are to be within 20 % of what `torch.cuda.max_memory_allocated` rises by (a test marked
    ``gpu``). On the CPU the parts are what a counter of tensors sees, and the totals are no claim on the process.
    """

    forward: Forecast
    backward: Forecast | None
    evaluation: int
    graph: int
    product: int
    graphs: int | None
    inference: int | None
    training: int | None

    def __str__(self) -> str:
        lines = [f"forward solve    {self.forward}"]
        if self.backward is not None:
            lines.append(f"backward solve   {self.backward}")
        lines += [
            f"f, one evaluation  {show_bytes(self.evaluation)} inside; with a graph {show_bytes(self.graph)} kept, "
            f"{show_bytes(self.product)} for a product with J^T",
            f"graphs kept      {'unknown' if self.graphs is None else self.graphs}",
            f"call without grad  {_shown(self.inference)};  with grad and backward  {_shown(self.training)}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def forecast_memory(deq: DEQ, x: Any, *args: Any, token_mask: Tensor | None = None, **kwargs: Any) -> MemoryForecast:
    """Forecast what a call ``deq(x, *args, **kwargs)`` holds at its peak, from its shapes and one probe of the layer.

    The solvers' buffers are forecast (`forecast_solve`), the layer's memory is that of one evaluation of f and one
    product with J^T. The module, its buffers and the generators are left as they were.

    Args:
        deq: the module.
        x: input of a call.
        *args: further arguments of the layer.
        token_mask: as for a call.
        **kwargs: further keywords of the layer.

    Raises:
        TypeError: ``deq`` is no `DEQ`, or ``x`` holds no tensor.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
        >>> forecast = deqlm.forecast_memory(deq, torch.randn(4, 64, 16))
        >>> forecast.forward.parts["history"] == 2 * 11 * 4 * 64 * 16 * 4
        True
    """
    if not isinstance(deq, DEQ):
        raise TypeError(f"deq must be a DEQ, got {type(deq).__name__}; for a solve without a module: forecast_solve")
    if first_tensor(x) is None:
        raise TypeError(f"x must be a tensor or a tree of tensors, got {type(x).__name__}")
    # parameters are shared, everything else is a copy, so that buffers may move
    shared = copy.deepcopy(deq, {id(p): p for p in deq.parameters()})
    with unchanged(deq):
        f, _ = shared.on_rows(x, args, kwargs)
        evaluation, graph, product = _probe(f)
        rows = f.rows
    layout = Layout(
        leaves=rows.row_shapes,
        batch_dims=rows.batch_dims,
        token_mask=None if token_mask is None else token_mask.reshape(rows.count, -1),
        round=rows.round if len(set(rows.dtypes)) > 1 else None,
    )
    size: dict[str, Any] = {"rows": rows.count, "unknowns": sum(rows.sizes), "dtype": rows.dtype, "device": rows.device}
    forward = forecast_solve(deq.solve, **size, layout=layout, leaving=rows.batch_dims == 1)
    how = getattr(deq.gradient.for_solve(deq.solve), "solve", None)
    backward = forecast_solve(how, **size) if isinstance(how, Solve) else None
    graphs = deq.gradient.graphs(deq.solve.stop)
    return MemoryForecast(
        forward=forward,
        backward=backward,
        evaluation=evaluation,
        graph=graph,
        product=product,
        graphs=graphs,
        inference=_sum(forward.total, evaluation),
        training=_training(forward, backward, graphs, evaluation, graph, product, rows.z0.nbytes),
    )


def _training(
    forward: Forecast,
    backward: Forecast | None,
    graphs: int | None,
    evaluation: int,
    graph: int,
    product: int,
    state: int,
) -> int | None:
    """Return the larger of the two phases: the forward solve, and the graphs with what goes backward through them."""
    solving = _sum(forward.total, evaluation)
    # solved point, incoming gradient and the adjoint stay beside the graph
    beside = _sum(graphs if graphs is None else graphs * graph, product, 3 * state)
    if backward is not None:
        beside = _sum(beside, backward.total)
    return None if solving is None or beside is None else max(solving, beside)


def _probe(f: RowMap) -> tuple[int, int, int]:
    """Return bytes of one evaluation beyond its result, of its graph, and of a product with J^T beyond that."""
    z = f.rows.z0.detach()
    with torch.no_grad():
        f(z)  # what is made once, such as caches, is not paid per evaluation
        with (meter := MemoryMeter()):
            fz = f(z)
        evaluation = max(0, meter.peak - fz.nbytes)
        del fz
    with torch.enable_grad():
        point = z.clone().requires_grad_()
        meter = MemoryMeter()
        with meter:
            fz = f(point)
            kept = meter.now
            if not fz.requires_grad:
                return evaluation, 0, 0
            beneath = meter.restart_peak()
            torch.autograd.grad(fz, point, torch.ones_like(fz), retain_graph=True, allow_unused=True)
    return evaluation, kept, max(0, meter.peak - beneath)


def _sum(*sizes: int | None) -> int | None:
    return None if any(size is None for size in sizes) else sum(size for size in sizes if size is not None)


def _shown(size: int | None) -> str:
    return "unknown" if size is None else show_bytes(size)
