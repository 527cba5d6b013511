"""Reported costs are what a wrapper around f counts: calls, rows, and passes through its graph in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import SOLVERS, Solve, Stop
from deqlm.testing.gradients.layers import solver_for
from deqlm.wrap.rows import RowMap, Rows

SOLVER_NAMES = sorted(SOLVERS)
LOOSE = Stop(max_iter=60, rtol=1e-4)
IGNORE = {"on_failure": "ignore"}


class Tally:
    """Wraps a map: counts calls, rows of each, J^T w and J v.

    J v is had by differentiating the product with J^T, so its passes go backward through the tap on J^T w.
    """

    def __init__(self, f: Any, taps: bool = True) -> None:
        self.f, self.taps = f, taps
        self.calls = self.rows = self.vjps = self.jvps = 0

    def __call__(self, z: Tensor, *args: Any) -> Tensor:
        self.calls += 1
        self.rows += z.shape[0]
        fz = self.f(z, *args)
        return _Out.apply(fz, self) if self.taps and fz.requires_grad else fz


class _Out(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fz: Tensor, tally: Tally) -> Tensor:
        ctx.tally = tally
        return fz.view_as(fz)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor, None]:
        ctx.tally.vjps += 1
        return _Back.apply(w, ctx.tally), None


class _Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, tally: Tally) -> Tensor:
        ctx.tally = tally
        return w.view_as(w)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        ctx.tally.jvps += 1
        return v, None


class Layer(nn.Module):
    """tanh(z W^T + u), ||W|| = size."""

    def __init__(self, size: float, dtype: torch.dtype, N: int = 6) -> None:
        super().__init__()
        W = torch.randn(N, N, dtype=dtype)
        self.W = nn.Parameter(size * W / torch.linalg.matrix_norm(W, 2))

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(z @ self.W.T + u)


def solver(name: str) -> Any:
    cls = SOLVERS[name]
    if name.startswith("scipy"):
        pytest.importorskip("scipy")
    if name.startswith("torchdeq"):
        pytest.importorskip("torchdeq")
    return cls()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SOLVER_NAMES)
def test_every_solver_counts_calls_and_rows(name: str, dtype: torch.dtype, rows: int) -> None:
    layer, u = Layer(0.9, dtype), torch.randn(rows, 6, dtype=dtype)
    tally = Tally(layer, taps=False)  # newton pushes its tangents through by vmap, which the taps do not know
    stop = Stop(max_iter=60, rtol=1e-3) if "torchdeq" in name else LOOSE
    with torch.no_grad():
        sol = deqlm.solve(tally, torch.zeros(rows, 6, dtype=dtype), args=(u,), solver=solver(name), stop=stop, **IGNORE)
    assert sol.cost.evaluations == tally.calls > 0
    assert sol.cost.row_evaluations == tally.rows


class Narrow(Tally):
    """Slow linear maps, one per row, that can be had for some rows only."""

    def __init__(self, rate: Tensor, u: Tensor) -> None:
        super().__init__(lambda z: rate * z + self.u)
        self.rate, self.u = rate, u

    def narrow(self, rows: Tensor) -> Any:
        u = self.u.index_select(0, rows)

        def narrowed(z: Tensor) -> Tensor:
            self.calls += 1
            self.rows += z.shape[0]
            return self.rate * z + u

        return narrowed


def half_done(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Stop]:
    """Return rates, inputs and a start where half of the rows are done at once, big enough for leaving to pay."""
    N, rows = 2048, 6
    rate = torch.linspace(0.5, 0.97, N, dtype=dtype)
    u = torch.randn(rows, N, dtype=dtype)
    z0 = torch.where(torch.arange(rows)[:, None] < 3, u / (1 - rate), 0.0)
    return rate, u, z0, Stop(max_iter=40, rtol=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("name", ["anderson", "fixed_point", "broyden"])
def test_a_solver_counts_only_the_rows_it_evaluates(name: str, impl: str, dtype: torch.dtype) -> None:
    rate, u, z0, stop = half_done(dtype)
    tally = Narrow(rate, u)
    sol = Solve(SOLVERS[name](impl=impl), stop)(tally, z0)
    assert (sol.cost.evaluations, sol.cost.row_evaluations) == (tally.calls, tally.rows)
    assert tally.rows < 6 * tally.calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["anderson", "fixed_point", "broyden"])
def test_rows_that_leave_are_not_counted(name: str, dtype: torch.dtype) -> None:
    rate, u, z0, stop = half_done(dtype)
    tally = Tally(lambda z, u: rate * z + u)
    with torch.no_grad():
        sol = deqlm.solve(tally, z0, args=(u,), solver=name, stop=stop, **IGNORE)
    assert (sol.cost.evaluations, sol.cost.row_evaluations) == (tally.calls, tally.rows)
    assert tally.rows < 6 * tally.calls, "no row left, so this test shows nothing"


def run(
    gradient: Any, name: str, rows: int, dtype: torch.dtype, bad: int = 0, **options: Any
) -> tuple[Any, Tally, Any]:
    layer, u = Layer(0.7, dtype), torch.randn(rows, 6, dtype=dtype)
    u[:bad] = torch.nan
    tally = Tally(layer)
    settings = {"stop": LOOSE, **IGNORE, **options}
    sol = deqlm.solve(tally, torch.zeros_like(u), args=(u,), gradient=gradient, solver=name, **settings)
    before = tally.calls, tally.rows, tally.vjps
    return sol, tally, before


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(deqlm.GRADIENTS))
def test_every_gradient_counts_calls_rows_and_products(name: str, dtype: torch.dtype, rows: int, bad: int) -> None:
    if bad == rows:
        pytest.skip("no healthy row to differentiate")
    solver = solver_for(name)
    sol, tally, (calls, counted_rows, _) = run(name, solver, rows, dtype, bad)
    assert sol.cost.evaluations == calls
    assert sol.cost.row_evaluations == counted_rows
    sol.z[bad:].sum().backward()
    again = calls if name == "reversible" else 0
    assert tally.calls <= calls + again, "f is not called in backward but to run back"
    passes_to_parameters = {"implicit": 1, "one_step": 1, "phantom": 4}.get(name)
    if passes_to_parameters is not None:
        assert tally.vjps == sol.adjoint.cost.vjps + passes_to_parameters
    assert tally.jvps == sol.adjoint.cost.jvps == 0


def test_all_rows_failed_counts_the_call_that_ties_the_graph() -> None:
    sol, tally, (calls, rows, _) = run("implicit", "anderson", 2, torch.float64, bad=2)
    assert (sol.cost.evaluations, sol.cost.row_evaluations) == (calls, rows) == (tally.calls, tally.rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_order_counts_both_kinds_of_products(dtype: torch.dtype) -> None:
    gradient = deqlm.Implicit(second_order=True)
    sol, tally, (calls, rows, _) = run(gradient, "anderson", 3, dtype)
    assert (sol.cost.evaluations, sol.cost.row_evaluations) == (calls, rows)
    parameter = tally.f.W
    (first,) = torch.autograd.grad(sol.z.square().sum(), parameter, create_graph=True)
    assert tally.calls == calls
    assert tally.jvps == 0
    # two evaluations stand in the graph, and each carries its cotangent to the parameters once
    assert tally.vjps == sol.adjoint.cost.vjps + 2
    first.square().sum().backward()
    assert tally.calls == calls
    assert sol.adjoint.cost.jvps > 0
    assert tally.jvps >= sol.adjoint.cost.jvps


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unrolled_counts_the_forward_calls_and_checkpoints_repeat_them(dtype: torch.dtype, checkpoint: bool) -> None:
    gradient = deqlm.Unrolled(checkpoint=checkpoint)
    budget = Stop(max_iter=7, rtol=0)
    sol, tally, (calls, rows, _) = run(gradient, "fixed_point", 3, dtype, stop=budget)
    assert (sol.cost.evaluations, sol.cost.row_evaluations) == (calls, rows) == (7, 21)
    sol.z.sum().backward()
    assert tally.calls == (14 if checkpoint else 7)
    assert tally.vjps == 7


@pytest.mark.parametrize("rows", [1, 3])
def test_products_with_the_jacobian_are_counted_apart(rows: int) -> None:
    """newton_krylov takes J v from the graph of one evaluation; each product is one pass."""
    layer, u = Layer(0.9, torch.float64), torch.randn(rows, 6, dtype=torch.float64)
    tally = Tally(layer)
    with torch.no_grad():
        sol = Solve("newton_krylov", Stop(rtol=1e-8))(lambda z: tally(z, u), torch.zeros_like(u))
    assert sol.converged.all()
    assert (sol.cost.evaluations, sol.cost.row_evaluations) == (tally.calls, tally.rows)
    assert sol.cost.jvps == tally.jvps > 0


@pytest.mark.filterwarnings("ignore:layer is a function that uses the module")
def test_deq_counts_what_its_layer_sees() -> None:
    layer = Layer(0.7, torch.float32)
    tally = Tally(layer)
    deq = deqlm.DEQ(tally, inject="argument", stop=LOOSE)
    y, sol = deq(torch.randn(3, 6), with_stats=True)
    assert (sol.cost.evaluations, sol.cost.row_evaluations) == (tally.calls, tally.rows)
    y.sum().backward()
    assert tally.vjps == sol.adjoint.cost.vjps + 1


@pytest.mark.parametrize("compact", [True, "at_once"])
def test_the_map_on_rows_counts_and_everybody_reads_it(compact):
    rate = torch.tensor([[0.1], [0.9], [0.5]])
    rowmap = RowMap(Rows(torch.zeros(3, 4096)), lambda z, rate: rate * z + 1, (rate,))
    how = Solve("fixed_point", Stop(rtol=1e-5, compact=compact))
    with torch.no_grad():
        first = how(rowmap, rowmap.rows.z0)
        assert (first.cost.evaluations, first.cost.row_evaluations) == (rowmap.calls, rowmap.row_calls)
        assert first.cost.row_evaluations < 3 * first.cost.evaluations
        again = how(rowmap, rowmap.rows.z0)
    assert again.cost == first.cost
    assert rowmap.count.cost() == first.cost + again.cost
