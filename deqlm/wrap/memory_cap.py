"""A limit on what a solver may hold, kept before the solve begins."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from deqlm.wrap.rows import Rows
from deqlm_solvers import Layout, Options, Solve
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.sizes import read_bytes, show_bytes
from deqlm_solvers.memory.forecast import Forecast, forecast_solve

__all__ = ["MemoryCap", "OnCap", "within_memory"]

OnCap = Literal["refuse", "shorten"]
G = TypeVar("G", bound=Options)


@dataclass(frozen=True)
class MemoryCap:
    """A number of bytes, and what to do when the forecast is above it."""

    limit: int
    on_cap: OnCap

    @classmethod
    def of(cls, memory_cap: int | str | None, on_cap: str) -> MemoryCap | None:
        """Return the cap that two arguments ask for, or None.

        Raises:
            ValueError: no size, or ``on_cap`` without a cap.
        """
        require(on_cap in ("refuse", "shorten"), "on_cap", on_cap, "'refuse' or 'shorten'")
        if memory_cap is None:
            require(on_cap == "refuse", "memory_cap", memory_cap, f"given with on_cap={on_cap!r}")
            return None
        return cls(read_bytes("memory_cap", memory_cap), on_cap)  # type: ignore[arg-type]

    def apply(self, solve: Solve, gradient: G, rows: Rows, layout: Layout) -> tuple[Solve, G]:
        """Return the forward solve and the gradient method, each with a history that fits.

        Raises:
            MemoryError, ValueError: see `within_memory`.
        """
        known: dict[str, Any] = {"cap": self.limit, "on_cap": self.on_cap, "device": rows.device}
        unknowns = sum(rows.sizes)
        leaving = rows.batch_dims == 1
        solve = within_memory(solve, rows.count, unknowns, rows.dtype, layout=layout, leaving=leaving, **known)
        backward = getattr(gradient, "solve", None)
        if torch.is_grad_enabled() and isinstance(backward, Solve):
            fitting = within_memory(backward, rows.count, unknowns, rows.dtype, what="backward solve", **known)
            if fitting is not backward:
                gradient = gradient.replace(solve=fitting)
        return solve, gradient


def within_memory(
    solve: Solve,
    rows: int,
    unknowns: int,
    dtype: torch.dtype = torch.float32,
    *,
    cap: int | str,
    on_cap: OnCap = "refuse",
    device: torch.device | str = "cpu",
    layout: Layout | None = None,
    leaving: bool = False,
    what: str = "solve",
) -> Solve:
    """Return ``solve`` if its forecast is within ``cap`` bytes, else refuse or return one with a shorter history.

    Args:
        solve: solver and stop.
        rows: B.
        unknowns: N.
        dtype: of the state.
        device: where the solve will run.
        layout: leaves, tokens and mask, as for `forecast_solve`.
        leaving: finished rows may leave the batch, as for `forecast_solve`.
        cap: bytes, or a text such as "2GiB".
        on_cap: "refuse" raises; "shorten" takes the largest ``memory`` that fits, with a warning.
        what: name of the solve in messages.

    Raises:
        MemoryError: the forecast is above the cap, and ``on_cap="refuse"`` or no history is short enough. The message
            names the forecast, the cap and the largest ``memory`` that fits.
        ValueError: the solver's memory is unknown, so that no cap can be held.

    Examples:
        >>> import deqlm
        >>> from deqlm import Solve, within_memory
        >>> within_memory(Solve("anderson"), 8, 65536, cap="1GiB").solver.memory
        12
        >>> within_memory(Solve("anderson"), 8, 65536, cap="20MiB")
        Traceback (most recent call last):
        MemoryError: solve: anderson, 8 rows of 65536 unknowns, float32: ... is above memory_cap=20.0 MiB; ...
    """
    limit = read_bytes("cap", cap)
    require(on_cap in ("refuse", "shorten"), "on_cap", on_cap, "'refuse' or 'shorten'")

    def told(how: Solve) -> Forecast:
        return forecast_solve(how, rows, unknowns, dtype, device=device, layout=layout, leaving=leaving)

    forecast = told(solve)
    if forecast.total is None:
        raise ValueError(f"memory_cap cannot be held, because the memory of the {what} is unknown: {forecast.reason}")
    if forecast.total <= limit:
        return solve
    over = f"{what}: {forecast} is above memory_cap={show_bytes(limit)}"
    length = getattr(solve.solver, "memory", None)
    if not isinstance(length, int):
        raise MemoryError(f"{over}; solver {solve.solver.name!r} has no history to shorten: use fewer rows at a time")

    def fits(memory: int) -> bool:
        total = told(_with_memory(solve, memory)).total
        return total is not None and total <= limit

    if not fits(1):
        least = told(_with_memory(solve, 1)).total or 0
        raise MemoryError(f"{over}; even memory=1 takes {show_bytes(least)}: use fewer rows at a time")
    low, high = 1, length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if on_cap == "refuse":
        raise MemoryError(f"{over}; the largest history that fits is memory={low} (on_cap='shorten' takes it)")
    text = f"{what}: memory_cap={show_bytes(limit)} shortens the history of {solve.solver.name} from {length} to {low}"
    warnings.warn(text, UserWarning, stacklevel=2)
    return _with_memory(solve, low)


def _with_memory(solve: Solve, memory: int) -> Solve:
    return Solve(solve.solver.replace(memory=memory), solve.stop)
