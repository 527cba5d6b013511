"""Adapters of scipy and torchdeq: what they refuse, odd states, what Stop asks for, and missing packages."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from deqlm_solvers import SOLVERS, Layout, Solve, Status, Stop
from solvers.adapter_cases import (
    LEAST,
    NAMES,
    SCIPY,
    Counter,
    check_honest,
    each,
    each_scipy,
    each_torchdeq,
    linear,
)

pytest.importorskip("scipy")
pytest.importorskip("torchdeq")


@pytest.mark.parametrize(
    "change",
    [
        {"test_every": 2},
        {"check_every": 5},
        {"patience": 3},
        {"keep": "best_f"},
        {"test_every": "auto"},
    ],
    ids=str,
)
@each
def test_unsupported_stop_fields_raise(name: str, change: dict) -> None:
    with pytest.raises(ValueError, match="cannot honour"):
        Solve(name, Stop(**change))


@pytest.mark.parametrize("change", [{"norm": "rms"}, {"per": "token"}, {"divergence": 10.0}], ids=str)
@each_torchdeq
def test_torchdeq_cannot_honour(name: str, change: dict) -> None:
    with pytest.raises(ValueError, match="cannot honour"):
        Solve(name, Stop(**change))


def test_hybr_cannot_honour_divergence() -> None:
    with pytest.raises(ValueError, match="cannot honour"):
        Solve("scipy.hybr", Stop(divergence=10.0))


@each
def test_unsupported_requests_raise_at_the_solve(name: str) -> None:
    f, _ = linear(0.5)
    z0 = torch.zeros(3, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="cannot run a budget"):
        Solve(name, Stop(rtol=0, atol=0))(f, z0)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match="z0 must be float32 or float64"):
            Solve(name)(f, z0.to(dtype))
    with pytest.raises(ValueError, match="z0 must be"):
        Solve(name)(f, torch.zeros(6, dtype=torch.float64))
    if name in LEAST:
        with pytest.raises(ValueError, match="rtol and atol must be one of them 0"):
            Solve(name, Stop(rtol=1e-3, atol=1e-3))(f, z0)
        with pytest.raises(ValueError, match="scale must be None"):
            Solve(name)(f, z0, Layout(scale=torch.ones(3)))
    assert f.calls == 0


@each
def test_absolute_tolerance(name: str) -> None:
    f, _ = linear(0.5)
    stop = Stop(max_iter=300, rtol=0, atol=1e-7)
    sol = Solve(name, stop)(f, torch.zeros(3, 6, dtype=torch.float64))
    check_honest(sol, f, stop)
    assert sol.converged.all()


@each
def test_the_solution_as_start(name: str) -> None:
    f, answer = linear(0.5)
    stop = Stop(max_iter=20, rtol=1e-8)
    sol = Solve(name, stop)(f, answer)
    check_honest(sol, f, stop)
    assert sol.converged.all()
    if name in SCIPY:
        assert f.calls == 1


@each
def test_a_solution_at_exactly_zero(name: str) -> None:
    sol = Solve(name, Stop(max_iter=20))(lambda z: 0.5 * z, torch.zeros(2, 3))
    assert sol.converged.all()
    assert (sol.z == 0).all()


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)], ids=str)
@each
def test_empty_states(name: str, shape: tuple[int, int]) -> None:
    f = Counter(lambda z: 0.5 * z)
    sol = Solve(name)(f, torch.zeros(shape))
    assert sol.z.shape == shape
    assert sol.converged.shape == shape[:1]
    assert sol.converged.all()
    assert sol.cost.evaluations == f.calls == 1


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 4)], ids=str)
@each
def test_small_and_non_contiguous_states(name: str, shape: tuple[int, int]) -> None:
    z0 = torch.zeros(shape[::-1], dtype=torch.float64).T
    f = Counter(lambda z: 0.5 * z.view(-1).cos().view(shape) + 0.1)
    stop = Stop(max_iter=100, rtol=1e-8)
    sol = Solve(name, stop)(f, z0)
    check_honest(sol, f, stop)
    assert sol.converged.all()


@each
def test_trace_is_the_residual_of_every_evaluation(name: str) -> None:
    f, _ = linear(0.5)
    sol = Solve(name, Stop(max_iter=200, trace=True))(f, torch.zeros(3, 6, dtype=torch.float64))
    want = torch.stack([torch.linalg.vector_norm(f.f(z) - z, dim=1) for z in f.points])
    assert sol.trace is not None
    torch.testing.assert_close(sol.trace, want, rtol=1e-12, atol=0)


@each_scipy
def test_norm_scale_and_leaves(name: str) -> None:
    f, _ = linear(0.5)
    z0 = torch.zeros(3, 6, dtype=torch.float64)
    layout = Layout(leaves=((2,), (4,)), scale=torch.full((3,), 100.0))
    loose = Solve(name, Stop(max_iter=200, norm="rms", per="leaf"))(f, z0, layout)
    assert loose.converged.all()
    r = (f.f(loose.z) - loose.z).split([2, 4], dim=1)
    rms = torch.stack([p.square().mean(1).sqrt() for p in r], dim=1).amax(1)
    torch.testing.assert_close(loose.residual, rms, rtol=1e-12, atol=0)
    assert (rms <= 1e-4 * 100).all()
    torch.testing.assert_close(loose.relative, rms / 100, rtol=1e-12, atol=0)


@each_scipy
def test_tokens(name: str) -> None:
    f, _ = linear(0.5)
    layout = Layout(leaves=((3, 2),), token_mask=torch.tensor([[True, True, False]] * 3))
    stop = Stop(max_iter=200, per="token", trace=True)
    sol = Solve(name, stop)(f, torch.zeros(3, 6, dtype=torch.float64), layout)
    assert sol.converged.all()
    r, fz = (f.f(sol.z) - sol.z).view(3, 3, 2), f.f(sol.z).view(3, 3, 2)
    assert (r.norm(dim=2)[:, :2] <= 1e-4 * fz.norm(dim=2)[:, :2]).all()
    assert sol.token_steps is not None
    assert (sol.token_steps[:, 2] == 0).all()
    assert (sol.token_steps[:, :2] > 1).all()
    assert int(sol.token_steps.max()) == f.calls


@each
def test_errors_of_f_reach_the_caller(name: str) -> None:
    def broken(z: Tensor) -> Tensor:
        raise ValueError("the layer is broken")

    def raises_later(z: Tensor) -> Tensor:
        if counter.calls == 2:
            raise ZeroDivisionError("later")
        return 0.5 * z + 1

    counter = Counter(raises_later)
    z0 = torch.ones(2, 3)
    with pytest.raises(ValueError, match="the layer is broken"):
        Solve(name)(broken, z0)
    with pytest.raises(ZeroDivisionError, match="later"):
        Solve(name)(counter, z0)
    with pytest.raises(ValueError, match="in place"):
        Solve(name)(lambda z: z.mul_(0.5), z0)
    with pytest.raises(ValueError, match="the shape of f"):
        Solve(name)(lambda z: z[:, :1], z0)
    with pytest.raises(ValueError, match="the dtype of f"):
        Solve(name)(lambda z: z.double(), z0)
    assert (z0 == 1).all()


@each
def test_no_graph_is_left(name: str) -> None:
    w = torch.full((3,), 0.5, requires_grad=True)
    sol = Solve(name)(lambda z: w * z + 1, torch.zeros(2, 3, requires_grad=True))
    assert not sol.z.requires_grad


@pytest.mark.parametrize("package", ["scipy", "torchdeq"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for name in NAMES:
        solve = Solve(name)
        if name.startswith(package):
            with pytest.raises(ImportError, match=rf'{name} needs {package}: pip install "deqlm\[compare\]"'):
                solve(torch.cos, torch.zeros(1, 1))
        elif package == "torchdeq":
            assert solve(torch.cos, torch.zeros(1, 1)).converged.all()


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "scipy.anderson", "memory": 0},
        {"name": "scipy.anderson", "alpha": -1.0},
        {"name": "scipy.anderson", "w0": -1.0},
        {"name": "scipy.anderson", "line_search": "exact"},
        {"name": "scipy.broyden1", "max_rank": 0},
        {"name": "scipy.broyden1", "reduction_method": "svd"},
        {"name": "scipy.broyden2", "max_rank": 3, "reduction_method": "none"},
        {"name": "scipy.krylov", "method": "cg"},
        {"name": "scipy.krylov", "rdiff": 0.0},
        {"name": "scipy.krylov", "inner_maxiter": 0},
        {"name": "scipy.krylov", "method": "gmres", "outer_k": 3},
        {"name": "scipy.hybr", "factor": 0.0},
        {"name": "scipy.hybr", "eps": 0.0},
        {"name": "scipy.hybr", "band": (1, 2, 3)},
        {"name": "torchdeq.fixed_point_iter", "tau": 0.0},
        {"name": "torchdeq.anderson", "memory": 1},
        {"name": "torchdeq.anderson", "lam": -1.0},
        {"name": "torchdeq.anderson", "tau": 1.5},
        {"name": "torchdeq.broyden", "memory": 0},
        {"name": "torchdeq.broyden", "line_search": 1},
    ],
    ids=str,
)
def test_bad_options_raise(spec: dict) -> None:
    with pytest.raises(ValueError, match=next(k for k in reversed(spec))):
        SOLVERS.make(spec)


def test_a_verified_point_may_fail_where_the_peer_says_it_is_done() -> None:
    """The peer tests the damped step, so tau=0.1 lets a residual of ten times the tolerance pass."""
    stop = Stop(max_iter=200, rtol=1e-3)
    f = Counter(lambda z: 0.5 * z + 1)
    sol = Solve({"name": "torchdeq.fixed_point_iter", "tau": 0.1}, stop)(f, torch.zeros(2, 3))
    check_honest(sol, f, stop)
    assert f.calls < stop.max_iter
    assert (sol.status == Status.STALLED).all()
    assert (sol.relative > stop.rtol).all()
