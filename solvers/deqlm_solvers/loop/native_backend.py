"""The native engine: one compiled call between two evaluations of f, on a CPU."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.kept import Kept
from deqlm_solvers.core.kinds import compiling
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.native_rule import NativeRule, Update
from deqlm_solvers.core.processes import Processes
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.backend import Backend, Knows, anything, may_leave
from deqlm_solvers.loop.criterion import Criterion
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.loop.method import Method
from deqlm_solvers.loop.native_report import Report
from deqlm_solvers.loop.native_runs import runs_of
from deqlm_solvers.loop.native_struct import GIVEN, NativeSolve
from deqlm_solvers.loop.runaway import share_left
from deqlm_solvers.native.library import load

__all__ = ["NativeBackend", "described", "native_bytes"]

TEST, LAST = 1, 2
CPU = torch.device("cpu")


class NativeBackend(Backend):
    """Keeps the state of all rows in one workspace; see step.cpp. Rows that left stay where they are in it."""

    knows_stop: ClassVar[Knows] = {
        **dict.fromkeys(("max_iter", "rtol", "atol", "divergence", "patience", "token_dim", "trace"), anything),
        **dict.fromkeys(("test_every", "check_every"), lambda value: value == "auto" or type(value) is int),
        "norm": lambda norm: norm in ("l2", "rms") or type(norm) is tuple,
        "per": lambda per: per in ("row", "token", "leaf"),
        "keep": lambda keep: keep == "best",
        "collective": lambda collective: isinstance(collective, bool),
        "compact": lambda compact: compact in (True, False, "at_once"),
    }
    knows_layout: ClassVar[Knows] = dict.fromkeys(
        ("leaves", "batch_dims", "scale", "token_mask", "atol_scale", "round", "first", "together"), anything
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
        if compiling():
            return "torch.compile traces torch operations only"
        return super().declines(method, stop, layout, z) or load().why

    @classmethod
    def again(cls, method: Method, evaluator: Evaluator, stop: Stop, layout: Layout, z: Tensor) -> NativeBackend | None:
        if torch.is_grad_enabled() or compiling() or not _plain_rows(layout):
            return None
        if type(z) is not Tensor or z.device.type != "cpu":
            return None
        plan = _PLANS.get((id(method), id(stop), z.shape, z.dtype, evaluator.eps, torch.get_num_threads()))
        if plan is None:
            return None
        made = object.__new__(cls)
        made._begin(plan, stop, z, unit=layout.atol_scale)
        return made

    def __init__(self, method: Method, evaluator: Evaluator, stop: Stop, layout: Layout, z: Tensor) -> None:
        library, native, eps = load().library, method.native_rule(), evaluator.eps
        assert library is not None and native is not None
        key = (native, stop, *z.shape, z.dtype, eps, torch.get_num_threads())
        plan = _Plan(native, described(*key), library.functions, _compiled(library.functions, z.dtype))
        # what the library reads by itself needs no criterion, unless its residuals are kept step by step
        plain = stop.per == "row" and stop.norm == "l2" and layout.scale is None and layout.token_mask is None
        criterion = None if plain and not stop.trace else Criterion(stop, layout, z)
        self._begin(plan, stop, z, criterion, plain, layout.first, layout.atol_scale)
        if stop.collective and layout.together is not None:
            self.together = layout.together

    @classmethod
    def remember(cls, asked: Method, backend: NativeBackend, evaluator: Evaluator, layout: Layout, z: Tensor) -> None:
        if backend.criterion is None and _plain_rows(layout):
            key = (z.shape, z.dtype, evaluator.eps, torch.get_num_threads())
            _PLANS.keep((asked, backend.stop), backend.plan, *key)

    def _begin(
        self,
        plan: _Plan,
        stop: Stop,
        z: Tensor,
        criterion: Criterion | None = None,
        plain: bool = True,
        first: Tensor | None = None,
        unit: Tensor | None = None,
    ) -> None:
        self.plan, self.native, self.functions = plan, plan.native, plan.functions
        self.stop, self.start = stop, z
        self.together = Processes() if stop.collective else None
        self.rows, self.unknowns = z.shape
        self._advance, self._finish, self._lost, self._settle, self._review, open_, bytes_ = plan.calls
        solve = NativeSolve.from_buffer_copy(plan.described)
        self.solve, self.pointer = solve, ctypes.addressof(solve)
        self.budget = bool(solve.budget)
        self.criterion = criterion
        self.masked = self._masked = None if criterion is None else criterion.masked
        self.keep: Any = _ONE
        if plain or criterion is None:
            solve.group_root = _ONE_AT
            if unit is not None:
                self.keep = unit.resolve_neg().contiguous()
                solve.unit = self.keep.data_ptr()
        else:
            self.keep = _groups(solve, stop, criterion)
        self.first = None if first is None else first.contiguous()
        self.best_z = self.token_steps = None
        if self.first is not None:
            solve.first = self.first.data_ptr()
        if not self.budget:
            self.best_z = torch.empty_like(z)
            solve.best_z = self.best_z.data_ptr()
        if solve.token:
            self.token_steps = torch.empty(self.rows, solve.groups, dtype=torch.int64, device=CPU)
            solve.token_steps = self.token_steps.data_ptr()
        self.workspace = torch.empty(bytes_(self.pointer), dtype=torch.uint8, device=CPU)
        solve.workspace = self.workspace.data_ptr()
        open_(self.pointer, z.data_ptr())
        self.every = 0 if stop.test_every == "auto" or self.budget else stop.test_every
        self.looked = self.k = 0
        self.trace: list[Tensor] = []
        self.traced = stop.trace
        self.plain = self.native.rule == Update.PICARD
        self.index: Tensor | None = None
        self.present = self.rows
        self.owns_output: bool | None = None
        self.previous: Tensor | None = None

    def advance(self, k: int, at: Evaluation, last: bool) -> tuple[Tensor, bool]:
        solve, z, fz, self.k = self.solve, at.z, at.fz, k
        budget = self.budget
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
        if not looks or self.together is None:
            return z_next, budget or not looks or active > 0
        return z_next, self.together.any(active > 0, CPU)

    def _passes_on(self, k: int, fz: Tensor) -> bool:
        """Say whether f(z) itself is the next point: a plain step of rows that all go on, with nothing to test.

        An f that returns the same storage again and again would then write over its argument; it shows at its second
        evaluation, while the first result is still held.
        """
        if not self.plain or self.solve.active != self.present or self.masked is not None:
            return False
        if self.traced and self.budget:
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
        if self.rows == 1 or self.budget or not self.functions.any_passed(self.pointer):
            return False
        return not torch.equal(self.points(), z)

    def review(self, at: Evaluation, take_up: bool) -> bool:
        self.index, self.present, self.solve.present, self.masked = None, self.rows, self.rows, self._masked
        at = at if self.masked is None else at.held(self.masked)
        z, fz = at.z.contiguous(), at.fz.contiguous()
        return bool(self._review(self.pointer, z.data_ptr(), fz.data_ptr(), self.k, take_up))

    def finish(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        report = Report(self.rows, self.budget)
        at = report.pointers
        picked = torch.empty(self.rows, dtype=torch.int8, device=CPU) if self.native.choices else None
        report.worst = self._finish(self.pointer, *at, None if picked is None else picked.data_ptr())
        z = self.best_z
        if self.budget:
            z = z_last.contiguous()
            if self._lost(self.pointer, z.data_ptr(), at[0], at[1], at[3]):
                report.worst = int(Status.NONFINITE)
                z = torch.where((report.field("status") == report.worst)[:, None], self.start, z)  # type: ignore[index]
        sol = Solution.told(report, z=z, cost=cost, residual_of="previous" if self.budget else "z")
        if picked is None and self.token_steps is None and not self.traced:
            return sol
        if self.traced and self.budget:
            self.trace[-1] = sol.residual  # measured by torch so far, which rounds in another order
        return sol.replace(
            trace=torch.stack(self.trace) if self.traced else None,
            token_steps=self.token_steps,
            picked=picked,
            choices=self.native.choices,
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
_ONE_AT = ctypes.addressof(_ONE)


class _Plan(NamedTuple):
    """What solves of the same method, stop and shape share.

    Attributes:
        native: the update rule.
        described: the struct of a solve, but for what belongs to one.
        functions: the library.
        calls: see `_compiled`.
    """

    native: NativeRule
    described: bytes
    functions: Any
    calls: list[Any]


_PLANS: Kept[_Plan] = Kept()


def _plain_rows(layout: Layout) -> bool:
    """Say whether rows are to be read as they are, but for a factor of ``atol`` that each may have."""
    given = (layout.scale, layout.token_mask, layout.first, layout.together)
    return all(each is None for each in given)


@functools.lru_cache(maxsize=8)
def _compiled(functions: Any, dtype: torch.dtype) -> list[Any]:
    """Return what the library does for one dtype, in the order in which `NativeBackend` takes it apart."""
    suffix = "float" if dtype == torch.float32 else "double"
    names = ("advance", "finish", "lost", "settle", "review", "open", "workspace_bytes")
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
    solve.groups, *runs = runs_of(stop.per, rule.leaves, axis, stop.norm == "rms")
    solve.runs = len(runs[0])
    held = [
        *runs,
        # expanded tensors have fewer numbers than rows
        *(None if t is None else t.contiguous() for t in (rule.mask, rule.weights, rule.scale, rule.atol_scale)),
    ]
    for name, tensor in zip(GIVEN, held, strict=False):
        setattr(solve, name, _pointer(tensor))
    return held


def _pointer(held: Any) -> int | None:
    if held is None:
        return None
    return held.data_ptr() if isinstance(held, Tensor) else ctypes.addressof(held)
