"""Adapters of scipy and torchdeq: true residual, true counts, and a status where they fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from deqlm_solvers import SOLVERS, ConvergenceError, Solve, Status, Stop, adapters
from solvers.adapter_cases import (
    LEAST,
    NAMES,
    SCIPY,
    Counter,
    check_honest,
    each,
    each_variant,
    linear,
)

pytest.importorskip("scipy")
pytest.importorskip("torchdeq")


def test_all_are_registered() -> None:
    assert set(NAMES) <= set(SOLVERS)
    assert {SOLVERS[name].__name__ for name in NAMES} == set(adapters.__all__)
    for name in NAMES:
        assert SOLVERS[name]().name == name
        assert "rows" not in SOLVERS[name].guarantees


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each
def test_linear_contraction(name: str, dtype: torch.dtype) -> None:
    f, answer = linear(0.5, dtype)
    stop = Stop(max_iter=400, rtol=1e-5 if dtype == torch.float32 else 1e-9)
    z0 = torch.zeros(3, 6, dtype=dtype)
    sol = Solve(name, stop)(f, z0)
    check_honest(sol, f, stop)
    assert sol.converged.all()
    assert sol.z.dtype == dtype
    tolerance = 2 * stop.rtol * torch.linalg.vector_norm(answer, dim=1)
    assert (torch.linalg.vector_norm(sol.z - answer, dim=1) <= 2 * tolerance).all()
    assert (z0 == 0).all()


@each_variant
def test_every_option_is_honest(spec: dict) -> None:
    f, _ = linear(0.5)
    stop = Stop(max_iter=300, rtol=1e-6)
    check_honest(Solve(spec, stop)(f, torch.zeros(3, 6, dtype=torch.float64)), f, stop)


@each_variant
def test_options_round_trip(spec: dict) -> None:
    solver = SOLVERS.make(spec)
    again = SOLVERS.make(solver.to_dict())
    assert again == solver
    assert solver.to_dict().items() >= {k: list(v) if isinstance(v, tuple) else v for k, v in spec.items()}.items()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("max_iter", [1, 2, 3, 5])
@each_variant
def test_max_iter_is_never_exceeded(spec: dict, max_iter: int, dtype: torch.dtype) -> None:
    f, _ = linear(0.99, dtype)
    stop = Stop(max_iter=max_iter, rtol=1e-6)
    solve, z0 = Solve(spec, stop), torch.ones(3, 6, dtype=dtype)
    if max_iter < LEAST.get(spec["name"], 1):
        with pytest.raises(ValueError, match=f"max_iter must be >= {LEAST[spec['name']]}"):
            solve(f, z0)
        assert f.calls == 0
        return
    sol = solve(f, z0)
    check_honest(sol, f, stop)
    assert (sol.status == Status.MAX_ITER).all()
    if max_iter == 1:
        assert torch.equal(sol.z, z0)
    with pytest.raises(ConvergenceError, match="3 MAX_ITER"):
        sol.raise_if_failed()


@each_variant
def test_a_nan_row_ends_nonfinite(spec: dict) -> None:
    plain, _ = linear(0.5)
    poison = torch.zeros(3, 6, dtype=torch.float64)
    poison[1, 2] = torch.nan
    f = Counter(lambda z: plain.f(z) + poison)
    stop = Stop(max_iter=40, rtol=1e-6)
    z0 = torch.ones(3, 6, dtype=torch.float64)
    sol = Solve(spec, stop)(f, z0)
    check_honest(sol, f, stop)
    assert sol.status[1] == Status.NONFINITE
    assert torch.equal(sol.z[1], z0[1])
    assert sol.residual[1] == torch.inf
    if not (spec["name"] == "torchdeq.broyden" and spec.get("line_search")):  # its step length is that of the batch
        assert (sol.status[[0, 2]] != Status.NONFINITE).all()
    assert sol.z.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
@each_variant
def test_a_later_nan_returns_a_finite_point(spec: dict, bad: float) -> None:
    plain, _ = linear(0.9)
    f = Counter(lambda z: plain.f(z) + (bad if f.calls >= 4 else 0.0))
    stop = Stop(max_iter=40, rtol=1e-9)
    sol = Solve(spec, stop)(f, torch.ones(3, 6, dtype=torch.float64))
    assert sol.cost.evaluations == f.calls <= stop.max_iter
    assert (sol.status == Status.NONFINITE).all()
    assert sol.z.isfinite().all()
    if spec["name"] in SCIPY:
        assert sol.residual.isfinite().all()


@each_variant
def test_a_nan_start_ends_nonfinite(spec: dict) -> None:
    f, _ = linear(0.5)
    sol = Solve(spec, Stop(max_iter=10))(f, torch.full((3, 6), torch.nan, dtype=torch.float64))
    assert (sol.status == Status.NONFINITE).all()
    assert (sol.residual == torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "f", [lambda z: 3 * z * z + 1, lambda z: 1e3 * z + 1, lambda z: z + 1, lambda z: z.exp()], ids=range(4)
)
@each_variant
def test_maps_without_a_reachable_fixed_point_end_with_a_status(spec: dict, f: Callable, dtype: torch.dtype) -> None:
    counter = Counter(f)
    stop = Stop(max_iter=60, rtol=1e-6)
    sol = Solve(spec, stop)(counter, torch.full((3, 6), 0.5, dtype=dtype))
    check_honest(sol, counter, stop)


def test_plain_iteration_of_an_expanding_map_diverges() -> None:
    sol = Solve("torchdeq.fixed_point_iter", Stop(max_iter=60))(lambda z: 2 * z + 1, torch.ones(2, 3))
    assert (sol.status == Status.DIVERGED).all()


@pytest.mark.parametrize("spec", [{"name": "scipy.anderson", "memory": 1, "alpha": 1.0, "line_search": None}])
def test_joint_solve_ends_when_a_row_diverges(spec: dict) -> None:
    f = Counter(lambda z: torch.tensor([[0.5], [-40.0]], dtype=z.dtype) * z**3 + 0.1)
    stop = Stop(max_iter=60, rtol=1e-9, divergence=50.0)
    sol = Solve(spec, stop)(f, torch.ones(2, 1, dtype=torch.float64))
    assert sol.cost.evaluations == f.calls < stop.max_iter
    assert sol.status[1] == Status.DIVERGED
    assert sol.status[0] == Status.STALLED
