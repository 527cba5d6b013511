"""The engine on a GPU: few Triton launches between two evaluations of f, and one read of the host per look."""

from __future__ import annotations

import functools
import importlib
import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.checks import LARGEST
from deqlm_solvers.core.cost import Cost
from deqlm_solvers.core.kinds import compiling
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.native_rule import NativeRule
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.core.status import Status
from deqlm_solvers.core.stop import Stop
from deqlm_solvers.loop.backend import Backend, Knows, anything, may_leave
from deqlm_solvers.loop.criterion import SMALLEST, Criterion
from deqlm_solvers.loop.evaluator import Evaluator
from deqlm_solvers.loop.method import Method
from deqlm_solvers.loop.runaway import COARSE, HIDDEN, SURE, share_left
from deqlm_solvers.loop.tracker import BEYOND, STILL_PASSES
from deqlm_solvers.triton_kernels.availability import why_not

if TYPE_CHECKING:
    from deqlm_solvers.triton_kernels.launch import Launches, Tokens

__all__ = ["MOST_PAIRS", "TritonBackend"]

MOST_PAIRS = 32
"""Pairs whose products one program holds in registers."""
IDLE_RATE, CLOSE, CLOSE_EPS = 0.7, 0.005, 4.0
"""As in plain_phase.py, which stands above the loop."""


class TritonBackend(Backend):
    """Keeps the state of all rows on the device; see triton_kernels. Rows that left stay where they are in it."""

    knows_stop: ClassVar[Knows] = {
        **dict.fromkeys(("max_iter", "rtol", "atol", "divergence", "patience", "token_dim", "trace"), anything),
        **dict.fromkeys(("test_every", "check_every"), lambda value: type(value) is int),
        "norm": lambda norm: norm in ("l2", "rms"),
        "per": lambda per: per in ("row", "token"),
        "keep": lambda keep: keep == "best",
        "compact": lambda compact: compact in (True, False, "at_once"),
    }
    knows_layout: ClassVar[Knows] = dict.fromkeys(
        ("leaves", "batch_dims", "scale", "token_mask", "atol_scale", "round", "first"), anything
    )

    @classmethod
    def declines(cls, method: Method, stop: Stop, layout: Layout, z: Tensor) -> str:
        native = method.native_rule()
        if native is None or native.line_search:
            return "the solver has no Triton kernels" + (" for a line search" if native else "")
        if native.pairs > MOST_PAIRS:
            return f"its kernels hold {MOST_PAIRS} pairs, and the solver keeps {native.pairs}"
        if 2 * (native.pairs + 1) * z.shape[1] >= LARGEST:
            return f"the history of a row has more than {LARGEST} numbers"
        why = super().declines(method, stop, layout, z) or _not_here(z)
        if not why and z.device.type != "cuda" and getattr(method, "impl", "") != "triton":
            why = "on a CPU it is for tests, which ask for it by name"
        if not why and stop.per == "token" and len(layout.leaves or ()) > 1:
            why = "it reads tokens of one tensor, and the state has several"
        return why or why_not(z.device)

    def __init__(self, method: Method, evaluator: Evaluator, stop: Stop, layout: Layout, z: Tensor) -> None:
        native = method.native_rule()
        assert native is not None
        launch: Any = importlib.import_module("deqlm_solvers.triton_kernels.launch")
        self.native, self.stop, self.start, self.eps = native, stop, z, evaluator.eps
        self.visit = launch.Visit
        self.criterion = Criterion(stop, layout, z)
        self.masked = self._masked = self.criterion.masked
        shared, blank = _constants(native, stop, z.dtype, evaluator.eps, _divisor(stop, self.criterion, z), z.device)
        self.columns: Any = importlib.import_module("deqlm_solvers.triton_kernels.columns")
        rows = self._opened(blank, layout, z)
        budget = stop.is_budget
        self.tokens = None if budget or stop.per != "token" else self._tokens(launch.Tokens, z)
        best_z = z if budget else z.clone()
        given, patient = layout.first is not None, stop.patience is not None
        self.launches: Launches = launch.Launches(native, z, rows, shared, best_z, self.tokens, given, patient)
        self.blank = blank
        self.k = self.looked = 0
        self.count: int | None = None
        self.lost = False
        self.need = 0.0
        self.last: Evaluation | None = None
        self.trace: list[Tensor] = []

    def _opened(self, blank: Tensor, layout: Layout, z: Tensor) -> Tensor:
        """Return the state of rows that have no evaluation behind them, (B, WIDTH)."""
        c, criterion = self.columns, self.criterion
        rows = blank.expand(z.shape[0], -1).clone()
        if criterion.scale is not None:
            rows[:, c.SCALE.value] = criterion.scale
        if criterion.atol_scale is not None:
            rows[:, c.ATOL.value] = self.stop.atol * criterion.atol_scale
        if layout.first is not None:
            rows[:, c.FIRST_RESIDUAL.value], rows[:, c.FIRST_SIZE.value] = layout.first.unbind()
        return rows

    def _tokens(self, kind: type[Tokens], z: Tensor) -> Tokens:
        (shape,), axis, mask = self.criterion.leaves, self.criterion.token_axis, self.criterion.mask
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        steps = torch.ones(z.shape[0], shape[axis], dtype=torch.int64, device=z.device)
        return kind(outer, shape[axis], inner, None if mask is None else mask.contiguous(), steps)

    def advance(self, k: int, at: Evaluation, last: bool) -> tuple[Tensor, bool]:
        stop, budget = self.stop, self.stop.is_budget
        self.k, self.last, self.count = k, at, None
        every = stop.test_every
        assert isinstance(every, int)
        tested = not budget and (last or k % every == 0)
        step = budget or not last
        z, fz = at.z.contiguous(), at.fz.contiguous()
        z_next = torch.empty_like(z) if step else z
        half = 2 * (k + 1) >= stop.max_iter
        self.launches.visit(z, fz, z_next, self.visit(k, half, tested, step))
        if stop.trace:
            self._trace(at, tested)
        if not self._looks(k, tested):
            return z_next, budget or not last
        self._read()
        if self.count or not self.lost:
            return z_next, bool(self.count) and not last
        self._take_up(self._lost())
        if last:
            return at.z, False
        self.launches.visit(z, fz, z_next, self.visit(max(1, k), half, False, True))
        return z_next, True

    def _looks(self, k: int, tested: bool) -> bool:
        """Say whether the host asks now, by `Stop.check_every`, whether every row is done."""
        looks = tested and 0 < self.stop.check_every <= k + 1 - self.looked
        if looks:
            self.looked = k + 1
        return looks

    def _read(self) -> None:
        """Read from the device, at once, all that the host wants to know of the rows that are present."""
        launches = self.launches
        told = launches.report if launches.index is None else launches.report.index_select(0, launches.index)
        told = told.cpu()
        codes = told[:, 0]
        self.count, self.lost = int((codes % 2).sum()), bool((codes >= 2).any())
        self.need = float(told[:, 1].max()) if len(told) else 0.0

    def _trace(self, at: Evaluation, tested: bool) -> None:
        c, rows = self.columns, self.launches.rows
        if self.stop.is_budget:
            self.trace.append(self.criterion(at).residual)
            return
        shown = rows[:, c.NOW_RESIDUAL.value].clone()
        self.trace.append(shown if tested else torch.full_like(shown, torch.nan))

    def _lost(self) -> Tensor:
        """Return rows that passed and no longer do, (B,) bool."""
        c, rows = self.columns, self.launches.rows
        return (rows[:, c.BEST_RATIO.value] <= 1) & (rows[:, c.NOW_RATIO.value] > STILL_PASSES)

    def _take_up(self, lost: Tensor) -> None:
        """Let ``lost`` rows, which passed and no longer do, go on as if they had just begun."""
        c, rows = self.columns, self.launches.rows
        for best, now in (("BEST_RESIDUAL", "NOW_RESIDUAL"), ("BEST_RELATIVE", "NOW_RELATIVE")):
            column = getattr(c, best).value
            rows[:, column] = torch.where(lost, rows[:, getattr(c, now).value], rows[:, column])
        for last, now in (("RESIDUAL", "NOW_RESIDUAL"), ("RELATIVE", "NOW_RELATIVE")):
            column = getattr(c, last).value
            rows[:, column] = torch.where(lost, rows[:, getattr(c, now).value], rows[:, column])
        rows[:, c.BEST_RATIO.value].masked_fill_(lost, torch.inf)
        rows[:, c.ACTIVE.value].masked_fill_(lost, 1.0)
        method = slice(c.TAKEN.value, None)
        rows[:, method] = torch.where(lost[:, None], self.blank[method], rows[:, method])

    def rows_to_keep(self) -> Tensor | None:
        launches, stop, c = self.launches, self.stop, self.columns
        present = launches.rows.shape[0] if launches.index is None else launches.index.shape[0]
        if self.count is None and stop.compact == "at_once" and not stop.is_budget:
            self._read()
        if self.count is None or self.count in (0, present):
            return None
        if not may_leave(
            stop, self.k, self.count, present, launches.rows.shape[0], launches.unknowns, lambda: self.need
        ):
            return None
        active = launches.rows[:, c.ACTIVE.value] > 0
        return (active if launches.index is None else active.index_select(0, launches.index)).nonzero().squeeze(1)

    def narrow(self, rows: Tensor, z: Tensor) -> Tensor:
        launches = self.launches
        launches.index = rows if launches.index is None else launches.index.index_select(0, rows)
        if self.masked is not None:
            self.masked = self.masked.index_select(0, rows)
        return z.index_select(0, rows)

    def points(self) -> Tensor:
        return self.launches.best_z.clone()

    def apart(self, z: Tensor) -> bool:
        if self.stop.is_budget or z.shape[0] in (1, self.count):
            return False
        passed = self.launches.rows[:, self.columns.BEST_RATIO.value] <= 1
        return bool(passed.any() & (self.launches.best_z != z).any())

    def review(self, at: Evaluation, take_up: bool) -> bool:
        launches, c = self.launches, self.columns
        rows = launches.rows
        launches.index, self.masked = None, self._masked
        reading = self.criterion(at if self.masked is None else at.held(self.masked))
        rows[:, c.NOW_RESIDUAL.value] = reading.residual
        rows[:, c.NOW_RELATIVE.value] = reading.relative
        rows[:, c.NOW_RATIO.value] = reading.ratio
        lost = self._lost()
        if take_up and bool(lost.any()):
            self._take_up(lost)
            return True
        worse = reading.ratio > STILL_PASSES * rows[:, c.BEST_RATIO.value].clamp_min(1.0)
        for best, now in (("BEST_RESIDUAL", reading.residual), ("BEST_RELATIVE", reading.relative)):
            column = getattr(c, best).value
            rows[:, column] = torch.where(worse, now, rows[:, column])
        return False

    def finish(self, z_last: Tensor, cost: Cost, keep_last: bool = False) -> Solution:
        stop, launches, choices = self.stop, self.launches, self.native.choices
        if stop.is_budget:
            return self._budget(z_last, cost)
        numbers, steps, status, runaway, picked = launches.finish(stop.patience is None and stop.max_iter >= 8)
        return Solution(
            z=launches.best_z,
            residual=numbers[0],
            relative=numbers[1],
            steps=steps,
            status=status,
            cost=cost,
            trace=torch.stack(self.trace) if stop.trace else None,
            token_steps=self._token_steps(steps),
            picked=picked if choices else None,
            choices=choices,
            runaway=runaway,
            first=numbers[2:],
        )

    def _token_steps(self, steps: Tensor) -> Tensor | None:
        if self.tokens is None:
            return None
        settled = self.tokens.steps <= steps[:, None]
        if self.tokens.mask is not None:
            settled &= self.tokens.mask
        return torch.where(settled, self.tokens.steps, 0)

    def _budget(self, z_last: Tensor, cost: Cost) -> Solution:
        assert self.last is not None
        reading, choices = self.criterion(self.last), self.native.choices
        size = torch.linalg.vector_norm(z_last, dim=1, dtype=torch.float64)
        sound = reading.residual.isfinite() & size.isfinite()
        status = torch.where(sound, int(Status.BUDGET), int(Status.NONFINITE)).to(torch.int8)
        picked = self.launches.rows[:, self.columns.PICKED.value].to(torch.int8) if choices else None
        return Solution(
            z=torch.where(sound[:, None], z_last, self.start),
            residual=torch.where(sound, reading.residual, torch.inf),
            relative=torch.where(sound, reading.relative, torch.inf),
            steps=torch.full_like(status, self.stop.max_iter, dtype=torch.int64),
            status=status,
            cost=cost,
            residual_of="previous",
            trace=torch.stack(self.trace) if self.stop.trace else None,
            picked=picked,
            choices=choices,
        )


def _not_here(z: Tensor) -> str:
    """Return why rows like ``z`` cannot be had, whatever the machine; empty where they can."""
    if z.dtype not in (torch.float32, torch.float64) or type(z) is not Tensor:
        return f"the state is a {type(z).__name__} of {z.dtype}"
    if not z.shape[1]:
        return "the state has no unknowns"
    if torch.is_grad_enabled():
        return "its steps cannot be differentiated"
    if compiling():
        return "torch.compile traces torch operations only"
    return ""


def _divisor(stop: Stop, criterion: Criterion, z: Tensor) -> float:
    """Return what norms are divided by."""
    if stop.norm != "rms":
        return 1.0
    unknowns = z.shape[1] // criterion.leaves[0][criterion.token_axis] if stop.per == "token" else z.shape[1]
    return math.sqrt(max(1, unknowns))


@functools.lru_cache(maxsize=64)
def _constants(
    native: NativeRule, stop: Stop, dtype: torch.dtype, eps: float, divisor: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return what all rows share, (SHARED,), and the state of a row that has no evaluation behind it, (WIDTH,)."""
    c: Any = importlib.import_module("deqlm_solvers.triton_kernels.columns")
    wide = dtype == torch.float64
    ridge = native.ridge if native.ridge is not None else (1e-12 if wide else 1e-6)
    shared = {
        **{"RTOL": stop.rtol, "DIVERGENCE": stop.divergence, "BEYOND": BEYOND, "SMALLEST": SMALLEST},
        **{"SHARE": share_left(stop.rtol, eps), "HIDDEN": HIDDEN * eps, "SURE": SURE if eps > COARSE else 1.0},
        **{"ROOT": divisor, "DAMPING": native.damping, "FIRST_DAMPING": native.first_damping},
        **{"GROWTH": native.growth, "RIDGE": ridge, "LEAST_PIVOT": 1e-9 if wide else 1e-4},
        **{"PLAIN_RATE": native.plain_rate, "LATER_RATE": max(IDLE_RATE, native.plain_rate)},
        **{"NEAR": max(CLOSE, CLOSE_EPS * eps), "PATIENCE": stop.patience or 0},
    }
    infinite = ("BEST_RATIO", "BEST_RESIDUAL", "BEST_RELATIVE", "RESIDUAL", "RELATIVE", "NOW_RESIDUAL", "NOW_RELATIVE")
    infinite += ("NOW_RATIO", "LIMIT", "PROGRESS", "FIRST_NORM", "BEST_NORM")
    beta = torch.tensor(native.damping, dtype=dtype, device="cpu").item()
    blank = {
        **dict.fromkeys(infinite, math.inf),
        **{"ACTIVE": 1.0, "ATOL": stop.atol, "UNIT": 1.0, "BETA": beta, "MOST": beta, "ABOVE": math.nan},
        **{"RESTARTED": 1.0, "NEWEST": max(0, native.pairs), "PLAIN": float(native.plain_rate > 0)},
    }
    made = []
    for width, values in ((c.SHARED, shared), (c.WIDTH, blank)):
        vector = torch.zeros(width, dtype=torch.float64, device="cpu")
        for name, value in values.items():
            vector[getattr(c, name).value] = value
        made.append(vector.to(device))
    return made[0], made[1]
