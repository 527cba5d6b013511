"""The native engine: one compiled call between two evaluations of f, on a CPU."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.native_rule import NativeRule, Update
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.backend import Backend, Knows, anything, may_leave
from deqlm_solvers.loop.criterion import Criterion
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.loop.method import Method
from deqlm_solvers.loop.runaway import share_left
from deqlm_solvers.native.library import load

__all__ = ["NativeBackend", "NativeSolve", "described", "native_bytes"]

TEST, LAST = 1, 2
CPU = torch.device("cpu")

_NUMBERS = (
    *("rows", "unknowns", "pairs", "rule", "line_search", "automatic", "budget", "max_iter", "patience", "token"),
    *("groups", "runs", "threads"),
)
_REALS = (
    *("rtol", "atol", "divergence", "damping", "first_damping", "ridge", "least_pivot", "growth", "plain_rate"),
    *("eps", "share_left"),
)
_GIVEN = ("run_end", "run_group", "group_root", "mask", "weights", "scale", "unit", "first", "best_z")
_MADE = ("token_steps", "workspace")
_OWN = ("row", "restart_z", "restart_r", "ring_s", "ring_y", "direction", "scratch", "gram", "gram2", "systems", "sums")


class NativeSolve(ctypes.Structure):
    """The struct ``Solve`` of state.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_double) for name in _REALS),
        *((name, ctypes.c_void_p) for name in (*_GIVEN, *_MADE, *_OWN, "index")),
        *((name, ctypes.c_int64) for name in ("present", "next", "active", "remaining")),
    ]


class NativeBackend(Backend):
    """Keeps the state of all rows in one workspace; see step.cpp. Rows that left stay where they are in it."""

    knows_stop: ClassVar[Knows] = {
        **dict.fromkeys(("max_iter", "rtol", "atol", "divergence", "patience", "token_dim", "trace"), anything),
        **dict.fromkeys(("test_every", "check_every"), lambda value: value == "auto" or type(value) is int),
        "norm": lambda norm: norm in ("l2", "rms") or type(norm) is tuple,
        "per": lambda per: per in ("row", "token", "leaf"),
        "keep": lambda keep: keep == "best",
        "compact": lambda compact: compact in (True, False, "at_once"),
    }
    knows_layout: ClassVar[Knows] = dict.fromkeys(
        ("leaves", "batch_dims", "scale", "token_mask", "atol_scale", "round", "first"), anything
    )

    @classmethod
    def declines(cls, method: Method, stop: Stop, layout: Layout, z: Tensor) -> str:
        """Return why not; builds the compiled step if nothing else stands against it."""
        if method.native_rule() is None:
            return "the solver has no compiled step"
        if z.device.type != "cpu":
            return f"it runs on the CPU, and the state is on {z.device}"
        if z.dtype not in (torch.float32, torch.float64) or type(z) is not Tensor:
            return f"the state is a {type(z).__name__} of {z.dtype}"
        if torch.is_grad_enabled():
            return "its steps cannot be differentiated"
        if torch.compiler.is_compiling():
            return "torch.compile traces torch operations only"
        return super().declines(method, stop, layout, z) or load().why

    def __init__(self, method: Method, evaluator: Evaluator, stop: Stop, layout: Layout, z: Tensor) -> None:
        library, native, eps = load().library, method.native_rule(), evaluator.eps
        assert library is not None and native is not None
        self.native, self.stop, self.start = native, stop, z
        self.rows, self.unknowns = z.shape
        self.functions = library.functions
        self._advance, self._finish, self._settle, self._review, open_, bytes_ = _compiled(self.functions, z.dtype)
        key = (native, stop, self.rows, self.unknowns, z.dtype, eps, torch.get_num_threads())
        solve = NativeSolve.from_buffer_copy(described(*key))
        self.solve, self.pointer = solve, ctypes.addressof(solve)
        # what the library reads by itself needs no criterion, unless its residuals are kept step by step
        given = (layout.scale, layout.atol_scale, layout.token_mask)
        plain = stop.per == "row" and stop.norm == "l2" and all(each is None for each in given)
        self.criterion = None if plain and not stop.trace else Criterion(stop, layout, z)
        self.masked = self._masked = None if self.criterion is None else self.criterion.masked
        self.keep: Any = _ONE
        if plain or self.criterion is None:
            solve.group_root = ctypes.addressof(_ONE)
        else:
            self.keep = _groups(solve, stop, self.criterion)
        self.first = None if layout.first is None else layout.first.contiguous()
        solve.first = _pointer(self.first)
        self.best_z = None if solve.budget else torch.empty_like(z)
        self.token_steps = torch.empty(self.rows, solve.groups, dtype=torch.int64, device=CPU) if solve.token else None
        solve.best_z, solve.token_steps = _pointer(self.best_z), _pointer(self.token_steps)
        self.workspace = torch.empty(bytes_(self.pointer), dtype=torch.uint8, device=CPU)
        solve.workspace = self.workspace.data_ptr()
        open_(self.pointer, z.data_ptr())
        self.every = 0 if stop.test_every == "auto" or solve.budget else stop.test_every
        self.looked = self.k = 0
        self.trace: list[Tensor] = []
        self.traced = stop.trace
        self.plain = native.rule == Update.PICARD
        self.index: Tensor | None = None
        self.present = self.rows
        self.owns_output: bool | None = None
        self.previous: Tensor | None = None

    def advance(self, k: int, at: Evaluation, last: bool) -> tuple[Tensor, bool]:
        solve, z, fz, self.k = self.solve, at.z, at.fz, k
        budget = solve.budget
        tests = not budget and (last or (k % self.every == 0 if self.every else k >= solve.next))
        if not tests and not last and self._passes_on(k, fz):
            self._trace(None)
            return fz, True
        z, fz = z.contiguous(), fz.contiguous()
        goes_on = budget or not last
        z_next = torch.empty_like(z) if goes_on else z
        trace = torch.empty(self.rows, dtype=torch.float64, device=CPU) if self.traced and not budget else None
        active = self._advance(
            self.pointer,
            z.data_ptr(),
            fz.data_ptr(),
            z_next.data_ptr(),
            k,
            TEST * tests + LAST * last,
            None if trace is None else trace.data_ptr(),
        )
        if self.traced:
            self._trace(self.criterion(at).residual if budget and self.criterion is not None else trace)
        if last and not budget:
            return z, False
        looks = self._looks(k, tests)
        return z_next, bool(budget) or not looks or active > 0

    def _passes_on(self, k: int, fz: Tensor) -> bool:
        """Say whether f(z) itself is the next point: a plain step of rows that all go on, with nothing to test.

        An f that returns the same storage again and again would then write over its argument; it shows at its second
        evaluation, while the first result is still held.
        """
        if not self.plain or self.solve.active != self.present or self.masked is not None:
            return False
        if self.traced and self.solve.budget:
            return False
        if (self.native.damping if k else self.native.first_damping) != 1.0 or not fz.is_contiguous():
            return False
        if self.owns_output is None:
            if self.previous is None:
                self.previous = fz
                return False
            self.owns_output = self.previous.data_ptr() == fz.data_ptr()
            self.previous = None
        return not self.owns_output

    def _looks(self, k: int, tests: bool) -> bool:
        """Say whether the host asks now, by `Stop.check_every`, whether every row is done."""
        every = self.stop.check_every
        if not self.every:
            return True
        if every == 0 or not tests or k + 1 - self.looked < every:
            return False
        self.looked = k + 1
        return True

    def _trace(self, values: Tensor | None) -> None:
        if self.traced:
            blank = torch.full((self.rows,), torch.nan, dtype=torch.float64, device=CPU)
            self.trace.append(blank if values is None else values)

    def rows_to_keep(self) -> Tensor | None:
        solve = self.solve
        if solve.active in (0, self.present):
            return None
        here = (self.k, solve.active, self.present, self.rows, self.unknowns)
        if not may_leave(self.stop, *here, lambda: solve.remaining):
            return None
        rows = torch.empty(solve.active, dtype=torch.int64, device=CPU)
        self.functions.indices_of_active(self.pointer, rows.data_ptr())
        return rows if self.index is None else torch.searchsorted(self.index, rows)

    def narrow(self, rows: Tensor, z: Tensor) -> Tensor:
        self.index = rows if self.index is None else self.index.index_select(0, rows)
        self.present = rows.shape[0]
        self.solve.index, self.solve.present = self.index.data_ptr(), self.present
        if self.masked is not None:
            self.masked = self.masked.index_select(0, rows)
        return z.index_select(0, rows)

    def points(self) -> Tensor:
        self._settle(self.pointer)
        assert self.best_z is not None
        return self.best_z.clone()

    def apart(self, z: Tensor) -> bool:
        if self.rows == 1 or self.solve.budget or not self.functions.any_passed(self.pointer):
            return False
        return not torch.equal(self.points(), z)

    def review(self, at: Evaluation, take_up: bool) -> bool:
        self.index, self.present, self.solve.present, self.masked = None, self.rows, self.rows, self._masked
        at = at if self.masked is None else at.held(self.masked)
        z, fz = at.z.contiguous(), at.fz.contiguous()
        return bool(self._review(self.pointer, z.data_ptr(), fz.data_ptr(), self.k, take_up))

    def finish(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        rows, choices = self.rows, self.native.choices
        residual, relative = torch.empty(2, rows, dtype=torch.float64, device=CPU)
        steps = torch.empty(rows, dtype=torch.int64, device=CPU)
        status = torch.empty(rows, dtype=torch.int8, device=CPU)
        first = torch.empty(2, rows, dtype=torch.float64, device=CPU)
        runaway = torch.empty(rows, dtype=torch.bool, device=CPU)
        picked = torch.empty(rows, dtype=torch.int8, device=CPU) if choices else None
        self._finish(
            self.pointer,
            residual.data_ptr(),
            relative.data_ptr(),
            steps.data_ptr(),
            status.data_ptr(),
            first.data_ptr(),
            runaway.data_ptr(),
            None if picked is None else picked.data_ptr(),
        )
        if self.traced and self.solve.budget:
            self.trace[-1] = residual  # measured by torch so far, which rounds in another order
        sol = Solution(
            z=self.best_z,
            residual=residual,
            relative=relative,
            steps=steps,
            status=status,
            cost=cost,
            trace=torch.stack(self.trace) if self.traced else None,
            token_steps=self.token_steps,
            picked=picked,
            choices=choices,
            runaway=None if self.solve.budget else runaway,
            first=None if self.solve.budget else first,
        )
        return self._budget(sol, z_last) if self.solve.budget else sol

    def _budget(self, sol: Solution, z_last: Tensor) -> Solution:
        sound = sol.residual.isfinite() & torch.linalg.vector_norm(z_last, dim=1, dtype=torch.float64).isfinite()
        return sol.replace(
            z=torch.where(sound[:, None], z_last, self.start),
            residual=torch.where(sound, sol.residual, torch.inf),
            relative=torch.where(sound, sol.relative, torch.inf),
            status=torch.where(sound, int(Status.BUDGET), int(Status.NONFINITE)).to(torch.int8),
            residual_of="previous",
        )


def native_bytes(
    native: NativeRule, stop: Stop, rows: int, unknowns: int, dtype: torch.dtype, groups: int = 0
) -> int | None:
    """Return the bytes of a solve's workspace, the returned point included; None where nothing is compiled.

    Args:
        native: what `StepSolver.native_rule` says.
        stop: the stopping rule.
        rows: B.
        unknowns: N.
        dtype: inner dtype, float32 or float64.
        groups: tokens or leaves, for a `Stop` that reads them apart.
    """
    library = load().library
    if library is None:
        return None
    solve = _describe(native, stop, rows, unknowns, dtype, torch.get_num_threads())
    solve.groups = groups
    workspace = _compiled(library.functions, dtype)[-1](ctypes.addressof(solve))
    point = 0 if stop.is_budget else rows * unknowns * dtype.itemsize
    return workspace + point + (8 * rows * groups if stop.per == "token" else 0)


_ONE = (ctypes.c_double * 1)(1.0)


@functools.lru_cache(maxsize=8)
def _compiled(functions: Any, dtype: torch.dtype) -> list[Any]:
    """Return what the library does for one dtype, in the order in which `NativeBackend` takes it apart."""
    suffix = "float" if dtype == torch.float32 else "double"
    names = ("advance", "finish", "settle", "review", "open", "workspace_bytes")
    return [getattr(functions, f"{name}_{suffix}") for name in names]


@functools.lru_cache(maxsize=64)
def described(
    native: NativeRule, stop: Stop, rows: int, unknowns: int, dtype: torch.dtype, eps: float, threads: int
) -> bytes:
    """Return the bytes of the struct of a solve, in which what is known before its tensors is filled in."""
    library = load().library
    assert library is None or library.functions.struct_bytes() == ctypes.sizeof(NativeSolve), "state.h differs"
    solve = _describe(native, stop, rows, unknowns, dtype, threads)
    solve.eps, solve.share_left = eps, share_left(stop.rtol, eps)
    return bytes(solve)


def _describe(
    native: NativeRule, stop: Stop, rows: int, unknowns: int, dtype: torch.dtype, threads: int
) -> NativeSolve:
    double = dtype == torch.float64
    ridge = native.ridge if native.ridge is not None else (1e-12 if double else 1e-6)
    solve = NativeSolve()
    solve.rows, solve.unknowns, solve.pairs, solve.rule = rows, unknowns, native.pairs, native.rule
    solve.line_search, solve.automatic, solve.budget = native.line_search, stop.test_every == "auto", stop.is_budget
    solve.max_iter, solve.patience = stop.max_iter, -1 if stop.patience is None else stop.patience
    solve.threads = threads
    solve.rtol, solve.atol, solve.divergence = stop.rtol, stop.atol, stop.divergence
    solve.damping, solve.first_damping, solve.ridge = native.damping, native.first_damping, ridge
    solve.least_pivot, solve.growth, solve.plain_rate = 1e-9 if double else 1e-4, native.growth, native.plain_rate
    return solve


def _groups(solve: NativeSolve, stop: Stop, rule: Criterion) -> list[Any]:
    """Describe how unknowns fall into tokens or leaves; return what the struct points to, to be kept alive."""
    solve.token = stop.per == "token"
    axis = rule.token_axis if solve.token else 0
    solve.groups, *runs = _runs(stop.per, rule.leaves, axis, stop.norm == "rms")
    solve.runs = len(runs[0])
    held = [
        *runs,
        # expanded tensors have fewer numbers than rows
        *(None if t is None else t.contiguous() for t in (rule.mask, rule.weights, rule.scale, rule.atol_scale)),
    ]
    for name, tensor in zip(_GIVEN, held, strict=False):
        setattr(solve, name, _pointer(tensor))
    return held


@functools.lru_cache(maxsize=64)
def _runs(per: str, leaves: tuple[tuple[int, ...], ...], axis: int, rms: bool) -> tuple[int, Any, Any, Any]:
    """Return the number of groups, ends and groups of all runs, and the divisor of each group's norm."""
    ends, owners = [], []
    sizes = [math.prod(shape) for shape in leaves]
    groups = 0 if per == "row" else len(sizes)
    if per == "row":
        sizes = [sum(sizes)]
    elif per == "leaf":
        ends, owners = torch.tensor(sizes).cumsum(0).tolist(), list(range(len(sizes)))
    else:
        sizes, end = [], 0
        for shape in leaves:
            length, width, outer = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape[:axis])
            sizes = [a + outer * width for a in (sizes or [0] * length)]
            for _ in range(outer):
                ends += range(end + width, end + width * length + 1, width) if width else [end] * length
                end += width * length
            owners += list(range(length)) * outer
        groups = len(sizes)
    roots = [math.sqrt(max(1, n)) if rms else 1.0 for n in sizes] or [1.0]
    run_end, run_group = (ctypes.c_int64 * len(ends))(*ends), (ctypes.c_int32 * len(owners))(*owners)
    return groups, run_end, run_group, (ctypes.c_double * len(roots))(*roots)


def _pointer(held: Any) -> int | None:
    if held is None:
        return None
    return held.data_ptr() if isinstance(held, Tensor) else ctypes.addressof(held)
