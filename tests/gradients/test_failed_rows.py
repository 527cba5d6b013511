"""Rows that fail: no trace of them in any gradient, or exactly what was asked for."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import Status, Stop
from deqlm.testing.gradients.layers import TanhLayer, gradients, wrap
from gradients.maps import NAMES

F64 = torch.float64
STOPS = {"tolerance": Stop(rtol=1e-6), "budget": Stop(max_iter=6, rtol=0)}
BAD_VALUES = [math.nan, math.inf, 1e300]

every_method = pytest.mark.parametrize("name", NAMES)
every_stop = pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())


def same(ours: list, truth: list) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))


class Shared(TanhLayer):
    """A layer whose map differs from row to row by a keyword: rows may be NaN or expand."""

    def forward(self, z: Tensor, u: Tensor, slope: Tensor | float = 0.0) -> Tensor:
        return super().forward(z, u) + slope * z


@every_method
@every_stop
@pytest.mark.parametrize("value", BAD_VALUES)
def test_a_bad_row_adds_exactly_zero(name: str, stop: Stop, value: float) -> None:
    deq = wrap(TanhLayer(5), name, stop=stop, on_failure="ignore")
    deq.layer.forward = lambda z, u: TanhLayer.forward(deq.layer, z, u) + 0.1 * u
    x = torch.randn(4, 5, dtype=F64, requires_grad=True)
    clean = gradients(deq(x)[[0, 2, 3]], deq, x)
    with torch.no_grad():
        x[1] = value
    y, sol = deq(x, with_stats=True)
    if value != 1e300:
        assert sol.status[1] == Status.NONFINITE
        assert (sol.status[[0, 2, 3]] != Status.NONFINITE).all()
        assert same(gradients(y, deq, x), clean)
    assert same(gradients(y[[0, 2, 3]], deq, x), clean)


@every_method
@every_stop
@pytest.mark.parametrize("value", BAD_VALUES[:2])
def test_as_many_unknowns_as_rows(name: str, stop: Stop, value: float) -> None:
    deq = wrap(TanhLayer(4), name, stop=stop, on_failure="ignore")
    deq.layer.forward = lambda z, u: TanhLayer.forward(deq.layer, z, u) + 0.1 * u
    x = torch.randn(4, 4, dtype=F64, requires_grad=True)
    clean = gradients(deq(x)[[0, 2, 3]], deq, x)
    with torch.no_grad():
        x[1] = value
    assert same(gradients(deq(x), deq, x), clean)


@every_method
@every_stop
def test_parameters_of_the_injection_stay_clean(name: str, stop: Stop) -> None:
    deq = wrap(TanhLayer(5), name, inject=nn.Linear(3, 5, dtype=F64), stop=stop, on_failure="ignore")
    x = torch.randn(4, 3, dtype=F64)
    clean = gradients(deq(x)[[0, 2, 3]], deq)
    x[1] = torch.nan
    assert same(gradients(deq(x), deq), clean)


@every_method
def test_a_diverging_row_adds_exactly_zero(name: str) -> None:
    stop = Stop(max_iter=100, rtol=1e-6, divergence=1e3)
    solver = "reversible" if name == "reversible" else "fixed_point"
    deq = wrap(Shared(5), name, solver=solver, stop=stop, on_failure="ignore")
    x = torch.randn(3, 5, dtype=F64, requires_grad=True)
    slope = torch.zeros(3, 1, dtype=F64)
    clean = gradients(deq(x, slope)[[0, 2]], deq, x)
    slope[1] = 3.0
    y, sol = deq(x, slope, with_stats=True)
    assert sol.status.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    assert same(gradients(y, deq, x), clean)


@every_method
@every_stop
@pytest.mark.parametrize("where", ["argument", "keyword", "tree"])
def test_bad_rows_of_further_arguments(name: str, stop: Stop, where: str) -> None:
    class Layer(TanhLayer):
        def forward(self, z: Tensor, u: Tensor, more: object) -> Tensor:
            return super().forward(z, u) * (more["m"] if isinstance(more, dict) else more)

    deq = wrap(Layer(5), name, stop=stop, on_failure="ignore")
    x = torch.randn(4, 5, dtype=F64)
    more = torch.rand(4, 1, dtype=F64).requires_grad_()

    def call() -> Tensor:
        return {
            "argument": lambda: deq(x, more),
            "keyword": lambda: deq(x, more=more),
            "tree": lambda: deq(x, more={"m": more}),
        }[where]()

    clean = gradients(call()[[0, 1, 3]], deq, more)
    with torch.no_grad():
        more[2] = torch.nan
    assert same(gradients(call(), deq, more), clean)


@every_method
@every_stop
@pytest.mark.parametrize("grad", [False, True])
def test_outputs_of_bad_rows_are_finite_so_that_a_shared_head_stays_clean(name: str, stop: Stop, grad: bool) -> None:
    deq = wrap(TanhLayer(5), name, stop=stop, on_failure="ignore")
    head = nn.Linear(5, 2, dtype=F64)
    x = torch.randn(4, 5, dtype=F64)
    x[1] = torch.nan
    with torch.set_grad_enabled(grad):
        y = head(deq(x))
    assert y.isfinite().all()
    if grad:
        y.sum().backward()
        assert all(p.grad.isfinite().all() for p in head.parameters())


@every_method
@every_stop
def test_a_batch_in_which_every_row_fails(name: str, stop: Stop) -> None:
    deq = wrap(TanhLayer(5), name, stop=stop, on_failure="ignore")
    x = torch.full((3, 5), torch.nan, dtype=F64, requires_grad=True)
    y, sol = deq(x, with_stats=True)
    assert sol.status.tolist() == [Status.NONFINITE] * 3
    y.sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in [*deq.parameters(), x])


@every_method
@pytest.mark.parametrize("batch_dims", [0, 2])
def test_other_batch_dimensions(name: str, batch_dims: int) -> None:
    deq = wrap(TanhLayer(5), name, batch_dims=batch_dims, stop=STOPS["tolerance"], on_failure="ignore")
    x = torch.randn(2, 3, 5, dtype=F64, requires_grad=True)
    clean = gradients(deq(x)[[0, 0, 1, 1, 1], [0, 2, 0, 1, 2]], deq, x)
    with torch.no_grad():
        x[0, 1] = torch.nan
    y, sol = deq(x, with_stats=True)
    if batch_dims == 0:
        assert sol.status.item() == Status.NONFINITE
        y.sum().backward()
        assert all(p.grad is None or (p.grad == 0).all() for p in [*deq.parameters(), x])
        return
    assert sol.status.shape == (2, 3)
    assert same(gradients(y, deq, x), clean)


@every_method
def test_a_table_of_positions_is_not_taken_for_rows(name: str) -> None:
    """B = L, and a (L, D) keyword that belongs to positions: healthy rows keep their own gradient."""

    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TanhLayer(3)

        def forward(self, z: Tensor, u: Tensor, positions: Tensor) -> Tensor:
            return self.inner(z, u + positions)

    deq = wrap(Positioned(), name, stop=STOPS["tolerance"], on_failure="ignore")
    x = torch.randn(4, 4, 3, dtype=F64, requires_grad=True)
    positions = torch.randn(4, 3, dtype=F64)
    clean = gradients(deq(x, positions=positions)[[0, 2, 3]], deq, x)
    with torch.no_grad():
        x[1] = torch.nan
    assert same(gradients(deq(x, positions=positions), deq, x), clean)


class Attention(nn.Module):
    """Averages over unmasked positions; over none it is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TanhLayer(3)

    def forward(self, z: Tensor, u: Tensor, mask: Tensor) -> Tensor:
        scores = torch.zeros(mask.shape, dtype=F64).masked_fill(mask, -torch.inf)
        return self.inner(z, u + 0.1 * scores.softmax(-1)[:, None] @ z)


@every_method
@pytest.mark.parametrize("length", [4, 5])
def test_a_fully_masked_row(name: str, length: int) -> None:
    """With B = L the (B, L) mask of the rows has the shape of a mask between positions."""
    deq = wrap(Attention(), name, stop=STOPS["tolerance"], on_failure="ignore")
    x = torch.randn(4, length, 3, dtype=F64, requires_grad=True)
    mask = torch.zeros(4, length, dtype=torch.bool)
    mask[2, -1] = True
    clean = gradients(deq(x, mask=mask)[[0, 2, 3]], deq, x)
    mask[1] = True
    y, sol = deq(x, mask=mask, with_stats=True)
    assert sol.status[1] == Status.NONFINITE
    assert same(gradients(y, deq, x), clean)


@every_method
def test_keep_leaves_what_autograd_makes_of_it(name: str) -> None:
    deq = wrap(TanhLayer(5), name, failed_grad="keep", on_failure="ignore", stop=STOPS["tolerance"])
    x = torch.randn(3, 5, dtype=F64)
    x[1] = torch.nan
    (g,) = torch.autograd.grad(deq(x).sum(), deq.layer.W)
    assert g.isnan().any()


@every_method
@every_stop
@pytest.mark.parametrize("on_failure", ["warn", "raise", "ignore"])
def test_raise_raises_whatever_else_was_asked_for(name: str, stop: Stop, on_failure: str) -> None:
    deq = wrap(TanhLayer(5), name, failed_grad="raise", on_failure=on_failure, stop=stop)
    x = torch.randn(3, 5, dtype=F64)
    x[1] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", deqlm.ConvergenceWarning)
        with pytest.raises(deqlm.ConvergenceError, match=r"1 NONFINITE \(rows 1\)"):
            deq(x)


@every_method
def test_raise_is_silent_for_a_row_that_merely_did_not_converge(name: str) -> None:
    deq = wrap(TanhLayer(5), name, failed_grad="raise", on_failure="ignore", stop=Stop(max_iter=2, rtol=1e-12))
    deq(torch.randn(3, 5, dtype=F64)).sum().backward()
    assert (deq.layer.b.grad != 0).all()


@every_method
@every_stop
def test_a_dropped_row_is_told_of(name: str, stop: Stop) -> None:
    deq = wrap(TanhLayer(5), name, stop=stop)
    x = torch.randn(3, 5, dtype=F64)
    x[1] = torch.nan
    with pytest.warns(deqlm.ConvergenceWarning, match=r"some rows ended NONFINITE"):
        deq(x)
    deq = wrap(TanhLayer(5), name, stop=stop, on_failure="raise")
    with pytest.raises(deqlm.ConvergenceError, match=r"1 NONFINITE \(rows 1\)"):
        deq(x)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_cotangent_that_is_not_finite_stays_visible_and_leaves_the_other_rows(value: float) -> None:
    deq = wrap(TanhLayer(5), "implicit", on_failure="ignore")
    x = torch.randn(3, 5, dtype=F64, requires_grad=True)
    y, sol = deq(x, with_stats=True)
    g = torch.ones(3, 5, dtype=F64)
    g[1] = 0
    (clean,) = torch.autograd.grad(y, x, g, retain_graph=True)
    g[1, 2] = value
    found, weight = torch.autograd.grad(y, [x, deq.layer.W], g)
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert not found[1].isfinite().any()
    assert not weight.isfinite().all()
    assert sol.adjoint.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
