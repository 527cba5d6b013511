"""How many bytes a solver will hold, told before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require, whole
from deqlm_solvers.core.dtypes import inner_dtype
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.sizes import show_bytes
from deqlm_solvers.core.solver import Solver
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.backend import pays
from deqlm_solvers.loop.step_solver import StepSolver
from deqlm_solvers.memory.meter import MemoryMeter
from deqlm_solvers.solve import Solve

__all__ = ["Forecast", "forecast_solve"]

ROWS = (2, 4)
LEAVING = 4
"""How many times as many rows a rehearsal needs in which rows leave."""
UNKNOWNS = (1024, 2048)
TOKENS = (16, 64)
LEAST = 12
"""Evaluations of a rehearsal, at least; more where the history is longer."""


@dataclass(frozen=True)
class Forecast:
    """Most bytes that a solver holds at once: its own tensors and the results of f, not what f needs inside.

    Attributes:
        solver: name, with options that differ from the default.
        rows, unknowns: B and N.
        dtype: of the state.
        parts: bytes by name: "history", "gram", "best" (the point kept per row), "trace" (of ``max_iter`` evaluations,
            fewer where f converges early), "iterates" (z and f(z)), "working" (the rest at the peak), and "leaving" (on
            top of that, when half of the rows are done and leave the batch).
        total: sum of the parts, or None where the solver's memory is unknown.
        reason: why it is unknown; empty otherwise.

    Examples:
        >>> from deqlm_solvers import Solve, forecast_solve
        >>> print(forecast_solve(Solve("anderson"), rows=8, unknowns=65536))
        anderson, 8 rows of 65536 unknowns, float32: ... MiB (history 44.0 MiB, ...)
    """

    solver: str
    rows: int
    unknowns: int
    dtype: str
    parts: dict[str, int]
    total: int | None
    reason: str = ""

    def __str__(self) -> str:
        head = f"{self.solver}, {self.rows} rows of {self.unknowns} unknowns, {self.dtype}: "
        if self.total is None:
            return f"{head}unknown ({self.reason})"
        shown = ", ".join(f"{name} {show_bytes(size)}" for name, size in self.parts.items() if size)
        return f"{head}{show_bytes(self.total)} ({shown})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def forecast_solve(
    solve: Solve,
    rows: int,
    unknowns: int,
    dtype: torch.dtype = torch.float32,
    *,
    device: torch.device | str = "cpu",
    layout: Layout | None = None,
    leaving: bool = False,
) -> Forecast:
    """Forecast the bytes that a solve holds at its peak, within a few per cent from 4096 unknowns on.

    Solvers may say it themselves (`Solver.peak_bytes`). Step solvers that do not, and a `Fallback` of such, are
    rehearsed: solves of a toy map with 2 and 4 rows of 1024 and 2048 unknowns, whose bytes are counted and scaled up,
    in about 0.1 s, once per solver and `Stop`. A `Fallback` is
    forecast as if every member were needed. Other solvers are unknown, and said to be.

    Args:
        solve: solver and stop.
        rows: B, >= 0.
        unknowns: N, >= 0.
        dtype: of the state, floating point.
        device: where the solve will run, and where the rehearsal does.
        layout: leaves, tokens and mask, which cost memory where the `Stop` looks at them; None for plain rows.
        leaving: f can be evaluated on some of its rows, so that finished rows may leave, as in `deqlm.solve` and `DEQ`.

    Raises:
        ValueError: a number that is not whole, or no floating dtype.
    """
    whole("rows", rows, 0, None)
    whole("unknowns", unknowns, 0, None)
    require(dtype.is_floating_point, "dtype", dtype, "floating point")
    label = _label(solve)
    shape = {"rows": rows, "unknowns": unknowns, "dtype": str(dtype).removeprefix("torch.")}
    if solve.stop.max_iter == 0:
        return Forecast(label, **shape, parts={}, total=0)
    if solve.stop.criterion is not None:
        # a rule knows the user's state, which a toy map has not
        solve = Solve(solve.solver, solve.stop.replace(criterion=None))
    solve = _fitted(solve, unknowns)
    solver, stop = solve.solver, solve.stop
    traced = rows * stop.max_iter * 8 if stop.trace else 0
    tokens = _tokens(solve, layout)
    total, extra = solver.for_layout(layout or Layout(), stop).peak_bytes(rows, unknowns, dtype, stop), 0
    if total is None:
        grouping = _Grouping.of(solve, layout)
        try:
            total = _rehearsed(solve, dtype, str(device), grouping).at(rows, unknowns, tokens)
            if leaving and _may_leave(stop, rows, unknowns):
                more = _rehearsed(solve, dtype, str(device), replace(grouping, leaving=True))
                extra = max(0, more.at(rows, unknowns, tokens) - total)
        except _UnknownError as unknown:
            return Forecast(label, **shape, parts={}, total=None, reason=str(unknown))
    total += traced
    state = rows * unknowns * inner_dtype(dtype).itemsize
    parts = {"history": 0, "gram": 0, **solver.buffers(rows, unknowns, dtype)}
    parts |= {"best": state, "trace": traced, "iterates": 2 * state}
    parts |= {"working": max(0, total - sum(parts.values())), "leaving": extra}
    return Forecast(label, **shape, parts=parts, total=total + extra)


def _fitted(solve: Solve, unknowns: int) -> Solve:
    """Return the solve with the buffers that the loop will give it."""
    solver, stop = solve.solver, solve.stop
    return Solve(solver.fitted(unknowns, stop.max_iter), stop) if isinstance(solver, StepSolver) else solve


def _may_leave(stop: Stop, rows: int, unknowns: int) -> bool:
    if stop.is_budget or not stop.compact:
        return False
    return rows > 1 if stop.compact == "at_once" else pays(rows - rows // 2, rows, unknowns)


@dataclass(frozen=True)
class _Grouping:
    """What of a `Layout` costs memory."""

    leaves: int
    token_axis: int | None
    masked: bool
    snapped: bool
    scaled: bool
    weighs_leaves: bool
    leaving: bool = False

    @classmethod
    def of(cls, solve: Solve, layout: Layout | None) -> _Grouping:
        layout = layout or Layout()
        axis = solve.stop.token_dim - layout.batch_dims if solve.stop.per == "token" else None
        leaves = min(2, len(layout.leaves or ((),)))
        return cls(
            leaves=leaves,
            token_axis=axis,
            masked=layout.token_mask is not None,
            snapped=layout.round is not None,
            scaled=layout.scale is not None,
            weighs_leaves=len(solve.stop.norm) == len(layout.leaves or ((),)),
        )

    def layout(self, rows: int, unknowns: int, tokens: int) -> Layout:
        """Return a layout of this grouping."""
        each = unknowns // self.leaves
        shape: tuple[int, ...] = (each,)
        if self.token_axis is not None:
            before = (2,) * self.token_axis
            shape = (*before, tokens, each // tokens // 2**self.token_axis)
        return Layout(
            leaves=(shape,) * self.leaves,
            scale=torch.ones(rows) if self.scaled else None,
            token_mask=torch.ones(rows, tokens, dtype=torch.bool) if self.masked else None,
            round=(lambda z: z.clone()) if self.snapped else None,
        )


@dataclass(frozen=True)
class _Growth:
    """Bytes = common + common_per_unknown N + B (per_row + per_row_unknown N + per_token L)."""

    common: float
    common_per_unknown: float
    per_row: float
    per_row_unknown: float
    per_token: float

    def at(self, rows: int, unknowns: int, tokens: int) -> int:
        """Return the bytes of a solve of any size."""
        each = self.per_row + self.per_row_unknown * unknowns + self.per_token * tokens
        return math.ceil(self.common + self.common_per_unknown * unknowns + rows * each)


class _UnknownError(Exception):
    """Small solves do not tell what a solver holds; the text says why."""


def _rehearsed(solve: Solve, dtype: torch.dtype, device: str, grouping: _Grouping) -> _Growth:
    solver = solve.solver
    if not solver.rehearsable():
        raise _UnknownError(f"solver {solver.name!r} does not say what it holds; see Solver.peak_bytes")
    known = (solve, dtype, device, grouping, torch.get_num_threads())
    try:
        return _rehearse_once(*known)
    except TypeError:  # a plugin with a field that cannot be hashed
        return _rehearse(*known)


def _rehearse(solve: Solve, dtype: torch.dtype, device: str, grouping: _Grouping, threads: int) -> _Growth:
    """Count the bytes of small solves.

    ``threads`` is part of the key: compiled steps hold scratch per thread.

    Raises:
        _UnknownError: twice the unknowns take more than twice the bytes.
    """

    def count(rows: int, unknowns: int, tokens: int = TOKENS[0]) -> float:
        return _peak(solve, dtype, device, rows, unknowns, grouping, tokens)

    few, many = (LEAVING * rows if grouping.leaving else rows for rows in ROWS)
    # as many unknowns as the history is long, which would be cut otherwise
    wide = max(1, -(-_longest_history(solve.solver) // UNKNOWNS[0]))
    small, large = (wide * unknowns for unknowns in UNKNOWNS)
    each, common = [], []
    for unknowns in (small, large):
        least = count(few, unknowns)
        each.append((count(many, unknowns) - least) / (many - few))
        common.append(least - few * each[-1])
    if each[1] > 1.1 * large / small * each[0]:
        name = solve.solver.name
        raise _UnknownError(f"the memory of solver {name!r} grows faster than N; it has to say it, Solver.peak_bytes")
    per_row_unknown, common_per_unknown = ((v[1] - v[0]) / (large - small) for v in (each, common))
    per_token = 0.0
    if grouping.token_axis is not None:
        more = count(few, small, TOKENS[1]) - count(few, small)
        per_token = more / few / (TOKENS[1] - TOKENS[0])
    return _Growth(
        common=common[0] - common_per_unknown * small,
        common_per_unknown=common_per_unknown,
        per_row=each[0] - per_row_unknown * small - per_token * TOKENS[0],
        per_row_unknown=per_row_unknown,
        per_token=per_token,
    )


_rehearse_once: Callable[..., _Growth] = lru_cache(maxsize=256)(_rehearse)


def _longest_history(solver: Solver) -> int:
    """Return how many evaluations a solver remembers, or the one among its members that remembers most."""
    return max(getattr(member, "memory", 0) for member in getattr(solver, "solvers", (solver,)))


def _peak(
    solve: Solve, dtype: torch.dtype, device: str, rows: int, unknowns: int, grouping: _Grouping, tokens: int
) -> int:
    stop = solve.stop
    length = max(LEAST, _longest_history(solve.solver) + 4)
    changes: dict[str, Any] = {"trace": False, "max_iter": min(stop.max_iter, length)}
    if not stop.is_budget:
        # nearly no tolerance, in the form that needs no warning, so that the history fills up
        changes |= {"rtol": 0.01} if stop.keep == "best_f" else {"rtol": 0.0, "atol": 1e-30}
    layout = grouping.layout(rows, unknowns, tokens)
    if isinstance(stop.norm, tuple):
        changes["norm"] = (1.0,) * (grouping.leaves if grouping.weighs_leaves else unknowns)
    meter = MemoryMeter()
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
        z0 = torch.zeros(rows, unknowns, dtype=dtype, device=device)
        inputs = torch.ones(rows, 1, dtype=dtype, device=device)
        if grouping.leaving:
            leave = 1 if stop.compact == "at_once" else rows // 2
            inputs[:leave] = 0.0  # these rows start at their fixed point
        toy = _Toy(torch.linspace(-0.95, 0.95, unknowns, dtype=dtype, device=device), inputs, meter)
        with meter:
            Solve(solve.solver, stop.replace(**changes))(toy if grouping.leaving else toy.evaluate, z0, layout)
    return meter.peak


class _Toy:
    """slopes * z + inputs, as a map that can leave rows out."""

    def __init__(self, slopes: Tensor, inputs: Tensor, meter: MemoryMeter) -> None:
        self.slopes, self.inputs, self.meter = slopes, inputs, meter
        self.evaluate = meter.watch(lambda z: slopes * z + inputs)

    def __call__(self, z: Tensor) -> Tensor:
        return self.evaluate(z)

    def narrow(self, rows: Tensor) -> _Toy:
        return _Toy(self.slopes, self.inputs.index_select(0, rows), self.meter)


def _tokens(solve: Solve, layout: Layout | None) -> int:
    if solve.stop.per != "token" or layout is None or layout.leaves is None:
        return 0
    return layout.leaves[0][solve.stop.token_dim - layout.batch_dims]


def _label(solve: Solve) -> str:
    solver = solve.solver
    own = {f.name: getattr(solver, f.name) for f in fields(solver) if getattr(solver, f.name) != f.default}  # type: ignore[arg-type]
    shown = ", ".join(f"{key}={value!r}" for key, value in own.items())
    return f"{solver.name}({shown})" if shown else solver.name
