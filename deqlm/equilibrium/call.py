"""One solve of a map that the caller gives: its noise and buffers held, whatever kind of callable it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from deqlm.equilibrium.rows import solve_rows
from deqlm.gradients.base import Gradient
from deqlm.gradients.collective import processes_in_step
from deqlm.wrap.failures import Failures
from deqlm.wrap.once import once_per_call_
from deqlm.wrap.replay import Replay
from deqlm.wrap.rows import RowMap, Rows
from deqlm_solvers import Solution, Solve

__all__ = ["solve_map"]


def solve_map(
    f: Callable[..., Any],
    rows: Rows,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: Solve,
    gradient: Gradient,
    failures: Failures,
    *,
    group: Any = None,
    **more: Any,
) -> Solution:
    """Solve z = f(z, *args, **kwargs) from the start in ``rows``; see `deqlm.solve`.

    ``group`` is for `processes_in_step`, ``more`` for `solve_rows`.
    """
    if not callable(f):
        raise TypeError(f"f must be a function or a module, got {type(f).__name__}")
    held = Replay(f, rows.device)
    if held.module is not None:
        once_per_call_(held.module)
    together = processes_in_step(held.module, how, gradient, group)
    evaluated, inputs = (partial(_spread, held), (args, kwargs)) if kwargs else (held, args)
    rowmap = RowMap(rows, evaluated, inputs, fixed=lambda: held.noisy, owner=f)
    rowmap.bare, rowmap.replay = (partial(_spread, f) if kwargs else f), held
    with held:
        return solve_rows(rowmap, how, gradient, failures.of_layer(f), together=together, **more)


def _spread(f: Callable[..., Any], z: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return f(z, *args, **kwargs)
