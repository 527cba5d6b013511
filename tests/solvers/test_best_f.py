"""keep="best_f" is torchdeq's fixed_point_iter with stop_mode="rel", the rule of the implicit language models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import linear, normal, tanh_layer
from deqlm.testing.solvers.rows import same_bits
from deqlm_solvers import FixedPoint, Solve, Status, Stop
from solvers.problems import parity_chain

PRESETS = [4, 24, 32]
EPS = 0.05


class Reference(NamedTuple):
    z: Tensor
    relative: Tensor
    calls: int


def reference(f: Callable[[Tensor], Tensor], z0: Tensor, max_iter: int, tol: float) -> Reference:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solver = pytest.importorskip("torchdeq.solver", exc_type=ImportError)
    counted = Counted(f)
    z, _, info = solver.fixed_point_iter(counted, z0, max_iter=max_iter, tol=tol, stop_mode="rel")
    return Reference(z, info["rel_lowest"], counted.calls)


def assert_parity(f: Callable[[Tensor], Tensor], z0: Tensor, max_iter: int, tol: float) -> Reference:
    want = reference(f, z0, max_iter, tol)
    sol = Solve(FixedPoint(), Stop(max_iter=max_iter, rtol=tol, keep="best_f"))(f, z0)
    assert sol.cost.evaluations == want.calls
    assert (sol.steps == want.calls).all()
    assert same_bits(sol.z, want.z)
    assert torch.allclose(sol.relative, want.relative.flatten().double(), rtol=1e-5, atol=1e-12)
    assert sol.residual_of == "previous"
    assert torch.equal(sol.converged, sol.relative < tol)
    return want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_iter", PRESETS)
def test_parity_on_contractions(max_iter, dtype):
    for problem in (linear("symmetric", 0.9), linear("non_normal", 0.5), tanh_layer(0.9)):
        assert_parity(problem.f, problem.z0(dtype), max_iter, EPS)


def test_parity_with_an_early_stop():
    problem = linear("symmetric", 0.3)
    want = assert_parity(problem.f, problem.z0(), 32, EPS)
    assert 1 < want.calls < 32


def test_parity_where_the_budget_ends_first():
    problem = linear("symmetric", 0.99)
    want = assert_parity(problem.f, problem.z0(), 4, 1e-6)
    assert want.calls == 4
    assert (want.relative > 1e-6).all()


def test_parity_where_rows_pass_and_leave_again_before_all_pass_at_once():
    """Rows are tested together: one may pass at its best, leave, and keep what it had."""
    phase = torch.tensor([[0.0], [2.0]])
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return z + (0.02 + 0.5 * torch.cos(torch.tensor(float(calls)) + phase).abs()) * torch.ones_like(z)

    z0 = torch.ones(2, 3)
    want = reference(f, z0, 24, 0.02)
    calls = 0
    sol = Solve(FixedPoint(), Stop(max_iter=24, rtol=0.02, keep="best_f"))(f, z0)
    assert same_bits(sol.z, want.z)
    assert sol.cost.evaluations == want.calls


@pytest.mark.parametrize("gain", [-1.0, -1.3, 1.2])
def test_parity_with_residuals_that_grow_or_do_not_fall(gain):
    b = normal(0, 3, 4)
    assert_parity(lambda z: gain * z + b, torch.zeros_like(b), 24, EPS)


def test_parity_with_a_non_monotone_residual():
    problem = linear("non_normal", 0.9, N=20)
    f = lambda z: 3 * torch.tanh(problem.f(z) - z.roll(3, dims=1))  # noqa: E731
    trace = Solve(FixedPoint(), Stop(max_iter=32, rtol=1e-6, keep="best_f", trace=True))(f, problem.z0()).trace
    assert trace is not None
    change = trace[1:] - trace[:-1]
    assert (change > 0).any(), "the problem is not the one that this test is about"
    assert (change < 0).any()
    assert_parity(f, problem.z0(), 32, 1e-6)


def test_parity_on_the_causal_chain():
    f, truth = parity_chain(3, 20)
    for max_iter in PRESETS:
        assert_parity(f, torch.zeros_like(truth), max_iter, EPS)


def test_what_is_kept_is_the_image_of_the_best_tested_point():
    problem = linear("symmetric", 0.95)
    f = Counted(problem.f)
    sol = Solve(FixedPoint(), Stop(max_iter=10, rtol=1e-6, keep="best_f"))(f, problem.z0())
    images = [problem.f(z) for z in f.points]
    relative = torch.stack(
        [(y - z).norm(dim=1) / (y.norm(dim=1) + 1e-9) for z, y in zip(f.points, images, strict=True)]
    )
    for i, k in enumerate(relative.argmin(0).tolist()):
        assert same_bits(sol.z[i], images[k][i])
        assert sol.residual[i] == pytest.approx((images[k] - f.points[k])[i].norm().item(), rel=1e-12)


def test_a_later_nan_does_not_spoil_the_best():
    """torchdeq's own mask * x + ~mask * y does (its defect 6): here parity ends."""
    problem = linear("symmetric", 0.9)
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.f(z) if calls < 5 else torch.full_like(z, torch.inf)

    sol = Solve(FixedPoint(), Stop(max_iter=12, rtol=1e-6, keep="best_f"))(f, problem.z0())
    assert sol.z.isfinite().all()
    assert (sol.status == Status.NONFINITE).all()


def test_check_every_does_not_change_the_answer_before_the_stop():
    problem = linear("symmetric", 0.99)
    stop = Stop(max_iter=24, rtol=1e-8, keep="best_f")
    plain = Solve(FixedPoint(), stop)(problem.f, problem.z0())
    for every in (0, 5, 24):
        other = Solve(FixedPoint(), stop.replace(check_every=every))(problem.f, problem.z0())
        assert same_bits(other.z, plain.z)


def test_check_every_is_bit_equal_with_an_early_stop():
    """How often the host looks may not change the answer: once all rows have passed, nothing better is kept."""
    problem = linear("symmetric", 0.5)
    stop = Stop(max_iter=24, rtol=EPS, keep="best_f")
    plain = Solve(FixedPoint(), stop)(problem.f, problem.z0())
    assert plain.cost.evaluations < 20
    for every in (0, 5, 24):
        other = Solve(FixedPoint(), stop.replace(check_every=every))(problem.f, problem.z0())
        assert same_bits(other.z, plain.z)
        assert same_bits(other.steps, plain.steps)


def test_a_residual_that_equals_the_tolerance_does_not_pass():
    f, z0 = (lambda z: 0.5 * z + 1), torch.zeros(1, 1, dtype=torch.float64)
    stop = Stop(max_iter=5, rtol=1e-9, keep="best_f")
    fifth = Solve(FixedPoint(), stop)(f, z0).relative.item()
    sol = Solve(FixedPoint(), stop.replace(max_iter=50, rtol=fifth))(f, z0)
    assert sol.converged.all()
    assert sol.steps.tolist() == [6]


def test_a_residual_that_equals_the_tolerance_marks_no_runaway():
    """Rows are at 1, 100 and 140 times their start; only from a point within tolerance on a residual has to halve."""
    steps = iter([1.0, 99.0, 40.0])
    stop = Stop(max_iter=3, rtol=99 / (100 + 1e-9), keep="best_f")
    sol = Solve(FixedPoint(), stop)(lambda z: z + next(steps), torch.zeros(1, 1, dtype=torch.float64))
    assert sol.status.tolist() == [Status.DIVERGED]
