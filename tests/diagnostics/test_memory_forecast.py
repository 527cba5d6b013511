"""The forecast of what solvers hold is what a counter at the dispatcher sees, and a cap is kept."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import SOLVERS, Anderson, Broyden, Fallback, FixedPoint, Solve, Solver, Stop, forecast_solve, within_memory
from deqlm_solvers import Layout
from deqlm_solvers.memory.meter import MemoryMeter

N = 4096
TIGHT = Stop(max_iter=22, rtol=1e-6)
STEP_SOLVERS: dict[str, Solver] = {
    "fixed_point": FixedPoint(),
    "damped": FixedPoint(damping=0.5),
    "anderson": Anderson(),
    "anderson_1": Anderson(memory=1),
    "anderson_5": Anderson(memory=5),
    "broyden": Broyden(),
    "broyden_bad": Broyden(update="bad"),
    "armijo": Broyden(line_search="armijo"),
    "fixed_point_torch": FixedPoint(impl="torch"),
    "anderson_torch": Anderson(impl="torch"),
    "broyden_torch": Broyden(impl="torch"),
    "newton_krylov": SOLVERS["newton_krylov"](),
    "fallback": Fallback("anderson", "broyden", "fixed_point"),
}
STOPS = {
    "plain": TIGHT,
    "budget": Stop(max_iter=22, rtol=0),
    "patience": TIGHT.replace(patience=21),
    "auto": TIGHT.replace(test_every="auto"),
    "best_f": TIGHT.replace(keep="best_f"),
    "trace": TIGHT.replace(trace=True, norm="rms"),
    "weights": TIGHT.replace(norm=(1.0,) * N),
    "token": TIGHT.replace(per="token"),
    "leaf": TIGHT.replace(per="leaf"),
}
HEAVY = {
    "fixed_point_torch",
    "anderson_torch",
    "broyden_torch",
    "newton_krylov",
    "fallback",
    "broyden_bad",
    "anderson_5",
}
CASES = [
    pytest.param(name, stop, marks=[pytest.mark.slow] if name in HEAVY and stop not in ("plain", "token") else [])
    for name in STEP_SOLVERS
    for stop in STOPS
]
"""Every pair; the slow half is left to continuous integration."""
FRAMES = {"token": Layout(leaves=((64, 64),)), "leaf": Layout(leaves=((64, 32), (2048,)))}


class Slow:
    """slopes z + u per row, slow enough to need every evaluation; rows with u = 0 are done at once."""

    def __init__(self, u: Tensor, slopes: Tensor, meter: MemoryMeter) -> None:
        self.u, self.slopes, self.meter = u, slopes, meter
        self.watched = meter.watch(lambda z: slopes * z + u)

    def __call__(self, z: Tensor) -> Tensor:
        return self.watched(z)

    def narrow(self, rows: Tensor) -> Slow:
        return Slow(self.u.index_select(0, rows), self.slopes, self.meter)


def measured(solve: Solve, rows: int, dtype: torch.dtype, layout: Layout | None = None, leaving: bool = False) -> int:
    meter = MemoryMeter(most=400)
    u = torch.ones(rows, 1, dtype=dtype)
    if leaving:
        u[: rows // 2] = 0.0
    f = Slow(u, torch.linspace(-0.97, 0.97, N, dtype=dtype), meter)
    z0 = torch.zeros(rows, N, dtype=dtype)
    with warnings.catch_warnings(), meter:
        warnings.simplefilter("ignore")  # rtol below what a dtype resolves
        solve(f if leaving else f.watched, z0, layout)
    return meter.peak


def possible(solver: Solver, stop: Stop) -> Solve:
    try:
        solve = Solve(solver, stop)
    except ValueError as error:
        pytest.skip(str(error))
    if stop.is_budget and "budget" not in solver.guarantees:
        pytest.skip("no budget")
    return solve


@pytest.mark.parametrize(("name", "stop"), CASES)
def test_forecast_is_what_a_counter_sees(name: str, stop: str) -> None:
    solve = possible(STEP_SOLVERS[name], STOPS[stop])
    forecast = forecast_solve(solve, 3, N, layout=FRAMES.get(stop))
    assert forecast.total == pytest.approx(measured(solve, 3, torch.float32, FRAMES.get(stop)), rel=0.05)
    assert sum(forecast.parts.values()) == forecast.total


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[pytest.mark.slow] if name in HEAVY and dtype is torch.float64 else [])
        for name in STEP_SOLVERS
        for dtype in (torch.float64, torch.bfloat16)
    ],
)
def test_forecast_knows_the_dtype(name: str, dtype: torch.dtype) -> None:
    solve = Solve(STEP_SOLVERS[name], TIGHT)
    assert forecast_solve(solve, 3, N, dtype).total == pytest.approx(measured(solve, 3, dtype), rel=0.05)


@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("name", ["anderson", "anderson_torch", "fixed_point"])
def test_forecast_knows_the_rows(name: str, rows: int) -> None:
    solve = Solve(STEP_SOLVERS[name], TIGHT)
    assert forecast_solve(solve, rows, N).total == pytest.approx(measured(solve, rows, torch.float32), rel=0.05)


@pytest.mark.parametrize("name", STEP_SOLVERS)
def test_forecast_with_rows_that_leave(name: str) -> None:
    solve = Solve(STEP_SOLVERS[name], TIGHT)
    want = measured(solve, 6, torch.float32, leaving=True)
    forecast = forecast_solve(solve, 6, N, leaving=True)
    if name == "fallback":  # its hungriest member may get the rows that are left only
        assert forecast.total >= want
    else:
        assert forecast.total == pytest.approx(want, rel=0.05)


def test_the_default_fallback_is_forecast_as_if_it_needed_all() -> None:
    whole, hungriest = (forecast_solve(Solve(name, TIGHT), 6, N).total for name in ("fallback", "newton_krylov"))
    assert whole >= hungriest


def test_newton_says_what_it_holds() -> None:
    solve, N, dtype = Solve("newton", Stop(max_iter=10_000, rtol=1e-5)), 160, torch.float64
    meter = MemoryMeter(most=400)
    slopes = torch.linspace(-0.97, 0.97, N, dtype=dtype)
    with meter:
        solve(meter.watch(lambda z: slopes * z + 1), torch.zeros(3, N, dtype=dtype))
    assert forecast_solve(solve, 3, N, dtype).total == pytest.approx(meter.peak, rel=0.05)


def test_history_and_gram_are_told_apart() -> None:
    parts = forecast_solve(Solve(Anderson(memory=12)), 8, 65536).parts
    assert parts["history"] == 2 * 11 * 8 * 65536 * 4
    assert parts["gram"] == 8 * 11 * 11 * 8
    assert parts["best"] == 8 * 65536 * 4


def test_a_longer_trace_is_in_it() -> None:
    short, long = (forecast_solve(Solve("anderson", Stop(max_iter=k, trace=True)), 5, N) for k in (100, 1100))
    assert long.total - short.total == long.parts["trace"] - short.parts["trace"] == 5 * 1000 * 8


def test_what_no_index_of_32_bits_holds_is_forecast_too() -> None:
    assert forecast_solve(Solve("anderson"), 2**33, 2**32).parts["best"] == 2**33 * 2**32 * 4


def test_an_unknown_solver_is_said_to_be() -> None:
    pytest.importorskip("scipy")
    forecast = forecast_solve(Solve("scipy.krylov"), 3, N)
    assert forecast.total is None
    assert "scipy.krylov" in forecast.reason
    assert "unknown" in str(forecast)


@pytest.mark.usefixtures("registries")
def test_a_new_step_solver_is_rehearsed_and_a_hungry_one_is_unknown() -> None:
    @deqlm.register_solver("lists")
    @deqlm.options
    class Lists(deqlm.StepSolver):
        memory: int = 7

        def init(self, z: Tensor) -> list[Tensor]:
            return []

        def step(self, f: Any, at: Any, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            state.append(at.r.clone())
            return at.fz, state[-self.memory :]

    @deqlm.register_solver("hungry")
    @deqlm.options
    class Hungry(deqlm.StepSolver):
        def init(self, z: Tensor) -> Tensor:
            return z.new_zeros(z.shape[0], z.shape[1], z.shape[1])

        def step(self, f: Any, at: Any, state: Tensor) -> tuple[Tensor, Tensor]:
            return at.fz, state

    solve = Solve(Lists(memory=9), TIGHT)
    assert forecast_solve(solve, 3, N).total == pytest.approx(measured(solve, 3, torch.float32), rel=0.05)
    assert "grows faster than N" in forecast_solve(Solve(Hungry()), 3, N).reason


def test_forecast_leaves_generators_alone_and_runs_in_inference_mode() -> None:
    before = torch.get_rng_state()
    with torch.inference_mode():
        forecast_solve(Solve(Anderson(memory=3, damping=0.77)), 3, N)
    assert torch.equal(before, torch.get_rng_state())


class TestCap:
    def test_within_the_cap_nothing_changes(self) -> None:
        solve = Solve("anderson")
        assert within_memory(solve, 8, 65536, cap="1GiB") is solve

    def test_refusing_names_forecast_cap_and_what_fits(self) -> None:
        with pytest.raises(MemoryError, match=r"MiB.*memory_cap=20.0 MiB; .* fits is memory=(\d+)") as caught:
            within_memory(Solve("anderson"), 8, 65536, cap="20MiB")
        fits = int(str(caught.value).split("memory=")[-1].split()[0])
        assert forecast_solve(Solve(Anderson(memory=fits)), 8, 65536).total <= 20 * 2**20
        assert forecast_solve(Solve(Anderson(memory=fits + 1)), 8, 65536).total > 20 * 2**20

    def test_shortening_takes_the_largest_history_that_fits_and_says_so(self) -> None:
        with pytest.warns(UserWarning, match="shortens the history of anderson from 12 to"):
            solve = within_memory(Solve("anderson", TIGHT), 8, N, cap="1.5MiB", on_cap="shorten")
        assert measured(solve, 8, torch.float32) <= 1.5 * 2**20
        assert 1 < solve.solver.memory < 12
        assert solve.stop == TIGHT

    def test_nothing_fits(self) -> None:
        with pytest.raises(MemoryError, match="even memory=1 takes"):
            within_memory(Solve("anderson"), 8, 65536, cap=1000, on_cap="shorten")
        with pytest.raises(MemoryError, match="no history to shorten"):
            within_memory(Solve("fixed_point"), 8, 65536, cap=1000, on_cap="shorten")

    def test_an_unknown_solver_cannot_be_capped(self) -> None:
        pytest.importorskip("scipy")
        with pytest.raises(ValueError, match="cannot be held"):
            within_memory(Solve("scipy.krylov"), 8, 65536, cap="1GiB")

    @pytest.mark.parametrize("cap", [0, -1, 1.5, True, "2 bananas", "", "GiB", "1.2.3MB"])
    def test_bad_sizes_are_explained(self, cap: Any) -> None:
        with pytest.raises(ValueError, match="memory_cap must be"):
            deqlm.solve(torch.cos, torch.zeros(2, 2), memory_cap=cap)

    def test_a_setting_that_would_be_ignored_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="memory_cap"):
            deqlm.DEQ(torch.nn.Tanh(), on_cap="shorten")

    def test_deq_refuses_forward_and_backward(self) -> None:
        layer = torch.nn.Tanh()
        x = 0.1 * torch.ones(2, N)
        with pytest.raises(MemoryError, match=r"^solve: anderson"):
            deqlm.DEQ(layer, memory_cap="400KB")(x)
        deq = deqlm.DEQ(layer, solver="fixed_point", memory_cap="400KB", on_failure="ignore")
        with torch.no_grad():
            deq(x)
        with pytest.raises(MemoryError, match=r"^backward solve: anderson"):
            deq(x)

    def test_deq_shortens_both_and_gradients_stay_right(self) -> None:
        layer = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh())
        x = torch.randn(6, 64)
        options: dict[str, Any] = {"stop": Stop(rtol=1e-6)}
        free, capped = deqlm.DEQ(layer, **options), deqlm.DEQ(layer, memory_cap=40_000, on_cap="shorten", **options)
        want = torch.autograd.grad(free(x).sum(), list(layer.parameters()))
        with pytest.warns(UserWarning, match="shortens"):
            got = torch.autograd.grad(capped(x).sum(), list(layer.parameters()))
        for ours, truth in zip(got, want, strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-3)
        assert capped.solve.solver.memory == 12, "the module keeps its own options"


class TestLayer:
    def deq(self, **options: Any) -> deqlm.DEQ:
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        return deqlm.DEQ(layer, **options)

    def test_solver_buffers_of_a_call_are_what_a_counter_sees(self) -> None:
        deq, x = self.deq(stop=TIGHT, on_failure="ignore"), torch.randn(3, 64, 64)
        forecast = deqlm.forecast_memory(deq, x)
        # the counted solve leaves the inside of f out, as the forecast does
        f, _ = deq.on_rows(x, (), {})
        meter = MemoryMeter()
        with torch.no_grad(), meter:
            deq.solve(meter.watch(f), f.rows.z0)
        assert sum(forecast.forward.parts.values()) - forecast.forward.parts["leaving"] == pytest.approx(
            meter.peak, rel=0.05
        )
        assert forecast.backward.rows == 3
        assert forecast.backward.unknowns == 64 * 64

    def test_parts_of_the_layer_are_measured(self) -> None:
        forecast = deqlm.forecast_memory(deqlm.DEQ(lambda z: torch.sin(torch.cos(z))), torch.zeros(2, N))
        state = 2 * N * 4
        # z + u, its cosine and the result; sin keeps its argument, cos too
        assert forecast.evaluation == 2 * state
        assert forecast.graph == 3 * state
        assert forecast.inference == forecast.forward.total + forecast.evaluation

    def test_gradient_methods_keep_their_number_of_graphs(self) -> None:
        x = torch.randn(2, 8, 64)
        kept = {
            "implicit": (deqlm.Implicit(), 1),
            "second": (deqlm.Implicit(second_order=True), 2),
            "phantom": (deqlm.Phantom(3), 3),
            "one_step": (deqlm.OneStep(), 1),
        }
        for gradient, graphs in kept.values():
            forecast = deqlm.forecast_memory(self.deq(gradient=gradient), x)
            assert forecast.graphs == graphs
            assert forecast.training >= graphs * forecast.graph
        unrolled = deqlm.forecast_memory(
            self.deq(gradient="unrolled", solver="fixed_point", stop=Stop(max_iter=9, rtol=0)), x
        )
        assert unrolled.graphs == 9

    def test_an_unknown_part_leaves_the_total_unknown(self) -> None:
        pytest.importorskip("scipy")
        forecast = deqlm.forecast_memory(deqlm.DEQ(torch.nn.Tanh(), solver="scipy.krylov"), torch.zeros(2, 8))
        assert forecast.forward.total is None
        assert forecast.inference is None
        assert forecast.training is None
        assert "unknown" in str(forecast)

    def test_the_module_is_left_as_it_was(self) -> None:
        layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
        deq = deqlm.DEQ(layer).train()
        state = {k: v.clone() for k, v in deq.state_dict().items()}
        generator = torch.get_rng_state()
        deqlm.forecast_memory(deq, torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
        assert all(torch.equal(v, state[k]) for k, v in deq.state_dict().items())
        assert torch.equal(generator, torch.get_rng_state())
        assert all(p.grad is None for p in deq.parameters())

    def test_bad_arguments_are_explained(self) -> None:
        with pytest.raises(TypeError, match="forecast_solve"):
            deqlm.forecast_memory(torch.nn.Tanh(), torch.zeros(2, 2))  # type: ignore[arg-type]

    @staticmethod
    def on(device: str, rows: int, tokens: int, width: int) -> tuple[deqlm.DEQ, torch.Tensor]:
        layer = torch.nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, device=device)
        deq = deqlm.DEQ(layer, on_failure="ignore", stop=Stop(max_iter=30, rtol=1e-6))
        return deq, torch.randn(rows, tokens, width, device=device)

    def test_what_is_measured_on_a_device_runs_without_a_warning_here(self) -> None:
        deq, x = self.on("cpu", rows=2, tokens=4, width=8)
        assert deq(x).shape == x.shape
        assert deqlm.forecast_memory(deq, x).inference is not None

    @pytest.mark.gpu
    @pytest.mark.parametrize("grad", [False, True])
    def test_total_on_a_device_is_what_the_allocator_saw(self, grad: bool) -> None:
        deq, x = self.on("cuda", rows=8, tokens=512, width=256)
        with torch.set_grad_enabled(grad):
            deq(x).sum()  # libraries take their workspaces once
        forecast = deqlm.forecast_memory(deq, x)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.set_grad_enabled(grad):
            y = deq(x)
            if grad:
                torch.autograd.grad(y.sum(), list(deq.parameters()))
        seen = torch.cuda.max_memory_allocated() - before
        assert (forecast.training if grad else forecast.inference) == pytest.approx(seen, rel=0.2)
