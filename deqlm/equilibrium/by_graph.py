"""One call as a graph: what runs in it, and what of its solution is copied out of it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Protocol

from torch import Tensor

from deqlm.equilibrium.rows import solve_rows
from deqlm.gradients.base import Gradient
from deqlm.wrap.captured import Captured
from deqlm.wrap.failures import Failures
from deqlm.wrap.memory_cap import MemoryCap
from deqlm.wrap.replay import Replay
from deqlm.wrap.rows import RowMap
from deqlm.wrap.trees import apart_from_tensors
from deqlm_solvers import Solution, Solve
from deqlm_solvers.core.checks import require

__all__ = ["solve_by_graph"]


class Wrapped(Protocol):
    """A module that solves, as `deqlm.DEQ`."""

    graphs: Captured
    cap: MemoryCap | None

    def on_rows(
        self, x: Any, args: Any, kwargs: Any, start: Any = None, *, still: bool = False
    ) -> tuple[RowMap, Replay]: ...


def solve_by_graph(deq: Any, call: tuple[Any, Any, Any, Any, Tensor | None], how: Solve, method: Gradient) -> Solution:
    """Return the solution of a call without grad, by the graph of an earlier call of its shape or a new one.

    Args:
        deq: a `Wrapped`, and a module.
        call: x, arguments, keywords, start and token mask.
        how: solver and stop.
        method: the gradient method, which may add to the value.

    Raises:
        ValueError: a stop that reads the device, a device without graphs, noise, or buffers that move.
        RuntimeError: an evaluation that cannot be captured.
    """
    rule = "a budget (rtol=0, atol=0), or one with check_every=0, with graph=True: what is read cannot be captured"
    require(how.stop.is_budget or how.stop.check_every == 0, "stop", how.stop, rule)
    layers: list[Replay] = []

    def run(given: Any) -> dict[str, Any]:
        x, args, kwargs, start, token_mask = given
        # a call as it is comes first, and shows whether there is something to watch
        rowmap, layer = deq.on_rows(x, args, kwargs, start, still=bool(layers))
        with layer:
            sol = solve_rows(rowmap, how, method, Failures("ignore", "drop"), token_mask=token_mask, cap=deq.cap)
        layers.append(layer)
        return _parts(sol)

    def check() -> None:
        replay = layers[0]
        require(not replay.noisy, "graph", True, "False for a layer that draws noise; eval() turns dropout off")
        require(not replay.buffers, "graph", True, "False for a layer that moves buffers, as BatchNorm does in train()")

    made = deq.graphs.call(run, call, deq, (how, method, apart_from_tensors(call)), check)
    return made["solution"].replace(z=made["z"], **made["rows"])


def _parts(sol: Solution) -> dict[str, Any]:
    """Return a solution as a tree of tensors, and as it is for what has none."""
    told = {field.name: getattr(sol, field.name) for field in fields(sol) if field.name != "z"}
    rows = {name: value for name, value in told.items() if isinstance(value, Tensor)}
    return {"solution": sol, "z": sol.z, "rows": rows}
