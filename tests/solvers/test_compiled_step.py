"""The compiled step on the CPU does what the torch operations do; the torch operations are the truth."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqlm.testing.solvers.counting import Counted, geometric, per_evaluation
from deqlm.testing.solvers.problems import exact_rows, linear, normal, tanh_layer
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solution, Solve, Solver, Status, Stop
from deqlm_solvers.loop.native_backend import native_bytes
from deqlm_solvers.native import library

pytestmark = pytest.mark.skipif(library.load().library is None, reason=library.load().why)

RULES = {
    "picard": FixedPoint(),
    "damped": FixedPoint(damping=0.7, first_damping=1.0),
    "anderson": Anderson(),
    "mixing": Anderson(plain_rate=0.0),
    "anderson_3": Anderson(memory=3, damping=0.8),
    "anderson_1": Anderson(memory=1, damping=0.9),
    "ridge": Anderson(ridge=1e-3),
    "broyden": Broyden(),
    "broyden_2": Broyden(memory=2, damping=0.5),
    "bad": Broyden(update="bad"),
    "armijo": Broyden(line_search="armijo"),
}
STOPS = {
    "default": Stop(max_iter=80, rtol=1e-6),
    "short": Stop(max_iter=5, rtol=1e-6),
    "one": Stop(max_iter=1),
    "budget": Stop(max_iter=6, rtol=0),
    "every_3": Stop(max_iter=80, rtol=1e-6, test_every=3),
    "auto": Stop(max_iter=80, rtol=1e-6, test_every="auto"),
    "late": Stop(max_iter=80, rtol=1e-6, check_every=7),
    "never": Stop(max_iter=30, rtol=1e-6, check_every=0),
    "patience": Stop(max_iter=80, rtol=1e-13, patience=4),
    "trace": Stop(max_iter=40, rtol=1e-6, trace=True, test_every=2),
    "absolute": Stop(max_iter=80, rtol=0, atol=1e-5),
    "rms": Stop(max_iter=80, rtol=1e-6, norm="rms"),
    "weights": Stop(max_iter=80, rtol=1e-6, norm=tuple(float(i % 3) for i in range(12))),
    "token": Stop(max_iter=80, rtol=1e-6, per="token"),
    "token_rms": Stop(max_iter=80, rtol=1e-6, per="token", norm="rms", patience=5),
    "leaf": Stop(max_iter=80, rtol=1e-6, per="leaf"),
    "divergence": Stop(max_iter=80, divergence=10.0),
}
rules = pytest.mark.parametrize("solver", RULES.values(), ids=RULES)


def both(solver: Solver, stop: Stop, f, z0: Tensor, layout: Layout | None = None) -> tuple[Solution, Solution]:
    return tuple(Solve(solver.replace(impl=impl), stop)(f, z0, layout) for impl in ("torch", "cpp"))  # type: ignore


def assert_agree(plain: Solution, fused: Solution, slack: float, late: int = 0) -> None:
    """Same outcome, points equal to rounding; rounding may move the step at which a row passes by ``late``."""
    assert torch.equal(plain.status, fused.status)
    assert ((plain.steps - fused.steps).abs() <= late).all()
    assert fused.z.dtype == plain.z.dtype
    assert torch.allclose(plain.z, fused.z, rtol=slack, atol=slack, equal_nan=True)
    assert torch.allclose(plain.residual, fused.residual, rtol=slack, atol=slack, equal_nan=True)
    assert plain.residual_of == fused.residual_of
    assert fused.choices == plain.choices
    if plain.picked is not None:
        assert torch.equal(plain.picked, fused.picked)
    if plain.trace is not None:
        rows = min(len(plain.trace), len(fused.trace))
        assert torch.equal(plain.trace[:rows].isnan(), fused.trace[:rows].isnan())
        assert torch.allclose(plain.trace[:rows], fused.trace[:rows], rtol=1e-2, atol=slack, equal_nan=True)
    if plain.token_steps is not None and not late:
        assert torch.equal(plain.token_steps, fused.token_steps)


def five_rows() -> tuple[Tensor, Tensor]:
    return normal(3, 5, 12), torch.tensor([[0.3], [0.9], [-0.8], [0.5], [0.95]], dtype=torch.float64)


@rules
@pytest.mark.parametrize("name", STOPS)
def test_it_does_what_the_torch_operations_do(solver: Solver, name: str):
    stop = STOPS[name]
    if isinstance(stop.norm, tuple) and stop.per != "row":
        pytest.skip("one weight per unknown")
    b, gain = five_rows()
    leaves = {"token": ((4, 3),), "leaf": ((7,), (5,))}.get(stop.per)
    plain, fused = both(solver, stop, exact_rows(b, gain), torch.zeros_like(b), Layout(leaves=leaves))
    assert_agree(plain, fused, 1e-7)


@rules
def test_rows_that_end_badly(solver: Solver):
    b, gain = five_rows()
    b[1], gain[2] = torch.nan, -30.0
    start = torch.zeros_like(b)
    start[4] = torch.inf
    plain, fused = both(solver, Stop(max_iter=8, rtol=1e-6), exact_rows(b, gain), start)
    assert plain.status.tolist()[1] == plain.status.tolist()[4] == Status.NONFINITE
    assert_agree(plain, fused, 1e-6)


@rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_maps_that_are_not_linear(solver: Solver, dtype: torch.dtype):
    problem = tanh_layer(0.9, B=7, N=33)
    rtol = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 3e-2}[dtype]
    plain, fused = both(solver, Stop(max_iter=150, rtol=rtol), problem.f, problem.z0(dtype))
    assert_agree(plain, fused, 20 * rtol, late=3)
    fz = problem.f(fused.z).double()
    true = (fz - fused.z.double()).norm(dim=1)
    assert torch.allclose(true, fused.residual, rtol=1e-3, atol=1e-6)


@given(
    B=st.integers(0, 19),
    N=st.integers(1, 70),
    memory=st.integers(1, 14),
    seed=st.integers(0, 99),
    radius=st.floats(0.1, 1.3),
    rule=st.sampled_from(["anderson", "broyden", "bad"]),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_memory(B, N, memory, seed, radius, rule):
    gen = torch.Generator().manual_seed(seed)
    A = torch.randn(N, N, generator=gen, dtype=torch.float64)
    A *= radius / torch.linalg.matrix_norm(A, 2)
    b = torch.randn(B, N, generator=gen, dtype=torch.float64)
    solver = (
        Anderson(memory=memory)
        if rule == "anderson"
        else Broyden(memory=memory, update={"bad": "bad"}.get(rule, "good"))
    )
    plain, fused = both(solver, Stop(max_iter=6, rtol=1e-10), lambda z: z @ A.T + b, torch.zeros_like(b))
    assert torch.equal(plain.status, fused.status)
    assert torch.allclose(plain.residual, fused.residual, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("per", ["token", "leaf"])
@pytest.mark.parametrize("name", ["picard", "mixing", "bad"])
def test_tokens_behind_other_dimensions_masks_and_scales(per: str, name: str):
    b, gain = five_rows()
    layout = Layout(leaves=((2, 2, 3),), scale=torch.linspace(0, 2, 5, dtype=torch.float64))
    stop = Stop(max_iter=80, rtol=1e-6, per=per)
    if per == "token":
        mask = torch.tensor([[True, False]]).repeat(5, 1)
        mask[0] = False
        layout = Layout(leaves=((2, 2, 3),), token_mask=mask, scale=layout.scale)
        stop = stop.replace(token_dim=2)
        b[:, 3:6] = torch.nan
        b[:, 9:] = torch.nan
    plain, fused = both(RULES[name], stop, exact_rows(b, gain), torch.zeros_like(b), layout)
    assert_agree(plain, fused, 1e-7)


@pytest.mark.parametrize("name", ["picard", "mixing", "broyden", "armijo"])
def test_a_unit_of_its_own_for_every_row(name: str):
    b, gain = five_rows()
    unit = torch.tensor([1.0, 1e-3, 1e3, 1.0, 1e-2], dtype=torch.float64)
    plain, fused = both(
        RULES[name],
        Stop(max_iter=100, rtol=0, atol=1e-6),
        exact_rows(b, gain),
        torch.zeros_like(b),
        Layout(atol_scale=unit),
    )
    assert_agree(plain, fused, 1e-8)
    done = plain.converged
    assert (fused.residual[done] <= 1e-6 * unit[done]).all()
    assert done.all()


@rules
def test_no_rows_at_all(solver: Solver):
    for stop in (Stop(max_iter=5), Stop(max_iter=5, rtol=0)):
        f = Counted(lambda z: 0.5 * z + 1)
        sol = Solve(solver, stop)(f, torch.zeros(0, 3))
        twin = Counted(lambda z: 0.5 * z + 1)
        Solve(solver.replace(impl="torch"), stop)(twin, torch.zeros(0, 3))
        assert sol.z.shape == (0, 3)
        assert f.calls == twin.calls


@pytest.mark.slow
@rules
def test_threads_do_not_change_a_bit(solver: Solver):
    problem = tanh_layer(0.9, B=40, N=256)
    stop = Stop(max_iter=12, rtol=1e-9)
    threads = torch.get_num_threads()
    f, z0 = exact_rows(normal(5, 40, 256), torch.full((40, 1), 0.9, dtype=torch.float64)), problem.z0()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(Solve(solver, stop)(f, z0))
    finally:
        torch.set_num_threads(threads)
    assert_same_rows(results[0], slice(None), results[1], slice(None))


def test_a_plain_loop_with_predicted_tests_costs_next_to_nothing():
    stop = Stop(rtol=0, atol=1e-300, test_every="auto")
    run = lambda f, K: Solve(FixedPoint(), stop.replace(max_iter=K))(f, torch.zeros(4, 16))  # noqa: E731
    operations, syncs = per_evaluation(run, geometric(0.98, 4, 16, 80))
    assert operations <= 2
    assert syncs <= 0.25


@rules
def test_no_host_sync_and_two_operations_per_evaluation(solver: Solver):
    stop = Stop(rtol=0, atol=1e-300)
    run = lambda f, K: Solve(solver, stop.replace(max_iter=K))(f, torch.zeros(4, 16))  # noqa: E731
    operations, syncs = per_evaluation(run, geometric(0.98, 4, 16, 60))
    assert operations <= 2
    assert syncs == 0


@pytest.mark.parametrize("stop", [Stop(max_iter=40, rtol=1e-6, test_every="auto"), Stop(max_iter=8, rtol=0)])
def test_a_map_that_returns_one_buffer_again_and_again(stop: Stop):
    problem = linear("symmetric", 0.9, B=3)
    buffer = torch.empty_like(problem.z0())

    def owns(z: Tensor) -> Tensor:
        return torch.add(problem.f(z), 0.0, out=buffer)

    plain = Solve(FixedPoint(impl="torch"), stop)(problem.f, problem.z0())
    fused = Solve(FixedPoint(impl="cpp"), stop)(owns, problem.z0())
    assert_agree(plain, fused, 1e-12)


def test_the_best_point_is_kept_where_the_residual_grows():
    f = Counted(lambda z: torch.where(z < 3, 2 * z + 1, z + 50.0))
    for solver in (FixedPoint(), Anderson(memory=3), Broyden(memory=3)):
        plain, fused = both(
            solver, Stop(max_iter=9, rtol=1e-9), f, torch.tensor([[0.1, 0.2], [2.0, -1.0]], dtype=torch.float64)
        )
        assert_agree(plain, fused, 1e-5)


def test_a_row_that_runs_away_is_tested_as_often():
    """From 20 on the residual is within tolerance by the size alone, and grows: no rate says when it will pass."""
    f = lambda z: z + torch.where(z < 20, 1.0, 0.03 * z * (z / 20) ** 0.02)  # noqa: E731
    stop = Stop(max_iter=60, rtol=0.05, test_every="auto", trace=True)
    plain, fused = both(FixedPoint(), stop, f, torch.zeros(1, 1, dtype=torch.float64))
    assert plain.status.tolist() == [Status.DIVERGED]
    assert plain.trace is not None
    assert not plain.trace[30:].isnan().any()
    assert_agree(plain, fused, 1e-12)


@pytest.mark.parametrize("test_every", [1, 3, "auto"])
def test_rows_that_mix_are_taken_up_when_all_are_done(test_every):
    rate = torch.tensor([[0.05], [0.9], [0.3]], dtype=torch.float64)
    f = lambda z: rate * z + 1 + 0.1 * z.mean(0, keepdim=True)  # noqa: E731
    stop = Stop(max_iter=600, rtol=1e-6, test_every=test_every)
    plain, fused = both(FixedPoint(), stop, f, torch.zeros(3, 4, dtype=torch.float64))
    assert plain.steps[0] > 100, "long after its neighbours had moved"
    assert plain.cost == fused.cost
    assert_agree(plain, fused, 1e-12)


def test_the_workspace_is_what_was_forecast():
    for solver in (FixedPoint(), Anderson(), Broyden(), Broyden(line_search="armijo")):
        kernel = solver.native_rule()
        assert kernel is not None
        one = native_bytes(kernel, Stop(), 4, 5000, torch.float32)
        two = native_bytes(kernel, Stop(max_iter=10_000), 4, 5000, torch.float32)
        assert one == two, "memory does not grow with max_iter"
        assert one is not None
        states = one / (4 * 5000 * 4)
        assert states <= 1.1 + (0 if kernel.pairs == 0 else 2 * kernel.pairs + 3 + kernel.line_search)


def test_an_explicit_request_is_never_dropped():
    z0 = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="impl='cpp' is not possible here: it does not know Stop"):
        Solve(FixedPoint(impl="cpp"), Stop(keep="best_f"))(lambda z: 0.5 * z + 1, z0)
    with pytest.raises(ValueError, match="impl must be 'auto', 'torch', 'cpp' or 'triton', got 'cuda'"):
        FixedPoint(impl="cuda")  # type: ignore[arg-type]

    class Mine(Anderson):
        """A subclass may change the rule, so it has no compiled step."""

    with pytest.raises(ValueError, match="the solver has no compiled step"):
        Solve(Mine(impl="cpp"))(lambda z: 0.5 * z + 1, z0)


def run_python(code: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


SOLVE = """
import torch
from deqlm_solvers import FixedPoint, Solve
from deqlm_solvers.native import library
print(library.load().why, library.load().library and library.load().library.path.parent)
print(Solve(FixedPoint())(lambda z: 0.5 * z + 1, torch.zeros(1, 1)).z.item())
try:
    Solve(FixedPoint(impl="cpp"))(lambda z: 0.5 * z + 1, torch.zeros(1, 1))
except ValueError as error:
    print(error)
"""


def test_without_a_compiler_torch_operations_do_it(tmp_path):
    said = run_python(SOLVE, CXX=str(tmp_path / "none"))
    assert "no C++ compiler found" in said
    assert "1.9997" in said
    assert "impl='cpp' is not possible here: no C++ compiler" in said


def test_a_compiler_that_fails_is_quoted(tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'no such standard' >&2\nexit 1\n")
    broken.chmod(0o755)
    said = run_python(SOLVE, CXX=str(broken), DEQLM_CACHE=str(tmp_path / "cache"))
    assert "could not build the kernel: no such standard" in said


@pytest.mark.slow
def test_the_kernel_is_built_once_and_kept(tmp_path):
    first = run_python(SOLVE, DEQLM_CACHE=str(tmp_path))
    (made,) = tmp_path.glob("step-*.so")
    stamp = made.stat().st_mtime_ns
    assert run_python(SOLVE, DEQLM_CACHE=str(tmp_path)) == first
    assert made.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("solver", [FixedPoint, Anderson, Broyden])
def test_lazy_views_are_what_they_stand_for(solver):
    """The negative of an imaginary part is a view with a bit; what reads the memory must not miss it."""
    pair = torch.randn(3, 4, dtype=torch.complex128)

    def f(z):
        return (0.3 * torch.complex(torch.cos(z), torch.sin(z)) + pair).conj().imag

    assert f(torch.zeros(3, 4, dtype=torch.float64)).is_neg()
    start = torch.randn(3, 4, dtype=torch.complex128).conj().imag
    layout = Layout(scale=torch.complex(torch.zeros(3).double(), -torch.ones(3).double()).conj().imag)
    for z0 in (start, torch.zeros(3, 4, dtype=torch.float64)):
        stop = Stop(rtol=1e-8)
        one, other = (Solve(solver(impl=impl), stop)(f, z0, layout) for impl in ("cpp", "torch"))
        assert one.converged.all()
        assert torch.allclose(one.z, other.z, rtol=1e-7)
        assert torch.allclose(f(one.z), one.z, rtol=1e-6)


DEVICE = """
import torch
from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solve, Stop
torch.set_default_device("meta")
z0 = torch.zeros(3, 6, device="cpu")
for solver in (FixedPoint, Anderson, Broyden):
    for impl in ("torch", "cpp"):
        for stop in (Stop(trace=True, patience=9), Stop(per="token", test_every="auto"), Stop(rtol=0, max_iter=3)):
            sol = Solve(solver(impl=impl), stop)(lambda z: 0.5 * z.cos() + 1, z0, Layout(leaves=((3, 2),)))
            assert sol.z.device.type == "cpu" and sol.status.device.type == "cpu" and not sol.failed.any()
"""


def test_the_default_device_is_not_asked():
    run = subprocess.run([sys.executable, "-c", DEVICE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
