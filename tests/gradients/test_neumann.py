"""The Neumann series: its terms, its error, its growth, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import DEQ, Neumann, Phantom, Stop
from deqlm.testing.gradients.layers import SHARP, TanhLayer, dense_gradients, wrap
from gradients.maps import symmetric

F64 = torch.float64


def cotangent(A: Tensor, gradient: deqlm.Gradient, g: Tensor) -> tuple[Tensor, deqlm.Solution]:
    """Return the gradient for x of the solution of z = A z + x, which is the estimate of (I - A^T)^-1 g."""
    x = torch.randn(len(g), len(A), dtype=F64, requires_grad=True)
    sol = deqlm.solve(lambda z, x: z @ A.T + x, torch.zeros_like(x), args=(x,), gradient=gradient, stop=SHARP)
    assert sol.converged.all()
    return torch.autograd.grad(sol.z, x, g)[0], sol


def jordan(n: int, diagonal: float, above: float) -> Tensor:
    return diagonal * torch.eye(n, dtype=F64) + above * torch.diag(torch.ones(n - 1, dtype=F64), 1)


@pytest.mark.parametrize("terms", [1, 3, 8])
@pytest.mark.parametrize("damping", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("A", [symmetric([0.9, 0.5, -0.6]), jordan(3, 0.5, 2.0)], ids=["symmetric", "non-normal"])
def test_error_is_the_cut_series_and_within_its_norm_bound(A: Tensor, terms: int, damping: float) -> None:
    g, eye = torch.randn(2, 3, dtype=F64), torch.eye(3, dtype=F64)
    exact = torch.linalg.solve(eye - A.T, g.T)
    cut = torch.linalg.matrix_power((1 - damping) * eye + damping * A.T, terms)
    found, sol = cotangent(A, Neumann(terms, damping), g)
    error = exact - found.T
    torch.testing.assert_close(error, cut @ exact, rtol=1e-10, atol=1e-11)
    assert (error.norm(dim=0) <= torch.linalg.matrix_norm(cut, 2) * exact.norm(dim=0) * (1 + 1e-9)).all()
    assert sol.adjoint.cost.vjps == terms - 1


def test_many_terms_give_the_implicit_gradient_of_parameters_too() -> None:
    layer = TanhLayer(6)
    x = torch.randn(3, 6, dtype=F64, requires_grad=True)
    y = wrap(layer, Neumann(64))(x)
    g = torch.randn(3, 6, dtype=F64)
    for ours, truth in zip(
        torch.autograd.grad(y, [layer.W, layer.b, x], g), dense_gradients(layer, y.detach(), g), strict=True
    ):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_more_terms_do_not_help_where_anderson_converged_on_an_expanding_map_and_the_growth_tells() -> None:
    A, g = symmetric([1.3, 0.5, 0.1]), torch.randn(2, 3, dtype=F64)
    exact = torch.linalg.solve(torch.eye(3, dtype=F64) - A.T, g.T).T
    (few, _), (many, sol) = cotangent(A, Neumann(4), g), cotangent(A, Neumann(20), g)
    assert (many - exact).norm() > 10 * (few - exact).norm()
    torch.testing.assert_close(sol.adjoint.growth, torch.full((2,), 1.3, dtype=F64), rtol=1e-2, atol=0)
    assert "largest growth per term 1.3" in repr(sol.adjoint)


def test_the_growth_has_the_batch_shape_and_is_absent_for_one_term() -> None:
    x = torch.randn(2, 3, 4, dtype=F64, requires_grad=True)
    for terms in (1, 5):
        deq = DEQ(lambda z: 0.5 * z, gradient=Neumann(terms), stop=SHARP, batch_dims=2)
        y, sol = deq(x, with_stats=True)
        y.sum().backward()
        if terms == 1:
            assert sol.adjoint.growth is None
        else:
            torch.testing.assert_close(sol.adjoint.growth, torch.full((2, 3), 0.5, dtype=F64))


def test_the_value_is_the_solved_point_and_the_cotangent_that_of_phantom_on_a_linear_map() -> None:
    A, g = symmetric([0.7, -0.4, 0.2]), torch.randn(2, 3, dtype=F64)
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    stop = Stop(max_iter=3, rtol=0)
    deq = DEQ(lambda z, u: z @ A.T + u, inject="argument", solver="fixed_point", stop=stop, gradient=Neumann(4, 0.8))
    with torch.no_grad():
        z = deq(x)
    y = deq(x)
    assert torch.equal(y, z)
    deq.gradient = Phantom(4, 0.8)
    torch.testing.assert_close(torch.autograd.grad(y, x, g), torch.autograd.grad(deq(x), x, g))


def test_half_precision_states_sum_in_float32() -> None:
    x = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    deq = DEQ(lambda z: 0.5 * z, gradient=Neumann(20), stop=Stop(rtol=0, max_iter=5))
    (got,) = torch.autograd.grad(deq(x), x)
    assert got.dtype == torch.bfloat16
    assert got.item() == 1.0  # of f = (z + x) / 2: .5 / (1 - .5); rounded sums of bfloat16 end below


@pytest.mark.parametrize("by", ["parameter", "cotangent"])
def test_a_second_derivative_is_refused(by: str) -> None:
    layer = TanhLayer(3)
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    g = torch.ones(2, 3, dtype=F64, requires_grad=True)
    (first,) = torch.autograd.grad(wrap(layer, Neumann())(x), x, g, create_graph=True)
    with pytest.raises(RuntimeError, match=r"gradient 'neumann' has no second derivative; use Implicit"):
        torch.autograd.grad(first.sum(), layer.W if by == "parameter" else g, allow_unused=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": 0}, r"terms must be a whole number >= 1, got 0"),
        ({"terms": True}, r"terms must be a whole number >= 1, got True"),
        ({"damping": 0.0}, r"damping must be in \(0, 1\], got 0\.0"),
        ({"damping": 1.5}, r"damping must be in \(0, 1\], got 1\.5"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Neumann(**options)
