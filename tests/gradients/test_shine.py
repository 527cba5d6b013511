"""The shared inverse estimate: its secant equations, its limit, its refinement, and that it claims no more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import DEQ, Implicit, Shine, Solve, Status, Stop
from deqlm.gradients.inverse_estimate import Watched, inverse_estimate
from deqlm.testing.gradients.layers import SHARP, TanhLayer, dense_gradients, wrap
from gradients.maps import symmetric

F64 = torch.float64


def estimate_of(q: Tensor, p: Tensor) -> Tensor:
    """Return the matrices H, (B, N, N)."""
    return p.transpose(1, 2) @ q - torch.eye(q.shape[2], dtype=q.dtype)


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_every_kept_pair_fulfils_its_secant_equation() -> None:
    s, y = torch.randn(2, 3, 4, 7, dtype=F64)
    H = estimate_of(*inverse_estimate(s, y, torch.ones(3, 1)))
    torch.testing.assert_close(y @ H.transpose(1, 2), s, rtol=1e-9, atol=1e-10)
    off = torch.linalg.svdvals(H + torch.eye(7, dtype=F64))
    assert (off[:, 4:] < 1e-10).all(), "what the pairs do not span is left at -I"


def test_pairs_that_tell_nothing_are_left_out() -> None:
    s, y = torch.randn(2, 1, 5, 6, dtype=F64)
    y[0, 1] = 2 * y[0, 0]  # explained by a newer one
    y[0, 2] = 1e-15  # lost in rounding
    y[0, 3] = torch.nan
    q, p = inverse_estimate(s, y, torch.ones(1, 1))
    assert [bool(row.any()) for row in q[0]] == [True, False, True, False, False]
    assert not p[0, [1, 3, 4]].any()
    H = estimate_of(q, p)[0]
    torch.testing.assert_close(y[0, [0, 4]] @ H.T, s[0, [0, 4]], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", ["anderson", "broyden", "fixed_point"])
def test_on_a_linear_map_it_is_the_implicit_gradient_after_n_independent_pairs_and_not_before(solver: str) -> None:
    A = torch.tensor([[0.5, 0.4, 0.0], [-0.4, 0.2, 0.3], [0.1, 0.0, -0.7]], dtype=F64)
    g = torch.randn(2, 3, dtype=F64)
    exact = torch.linalg.solve(torch.eye(3, dtype=F64) - A.T, g.T).T
    found = {}
    for most in (2, 3, 4, 6):
        x = torch.randn(2, 3, dtype=F64, requires_grad=True)
        stop = Stop(max_iter=most, rtol=0)
        sol = deqlm.solve(
            lambda z, x: z @ A.T + x, torch.zeros_like(x), args=(x,), solver=solver, gradient=Shine(), stop=stop
        )
        found[most] = (torch.autograd.grad(sol.z, x, g)[0] - exact).norm() / exact.norm()
    assert found[2] > 0.05
    assert found[3] > 0.01
    assert found[4] < 1e-9
    assert found[6] < 1e-9
    assert not Shine.exact


def test_it_points_where_the_implicit_gradient_does_better_than_one_step() -> None:
    layer = TanhLayer(20, size=0.95)
    x = torch.randn(8, 20, dtype=F64, requires_grad=True)
    g = torch.randn(8, 20, dtype=F64)
    y = wrap(layer, Shine(), stop=Stop(rtol=1e-6))(x)
    truth = dense_gradients(layer, y.detach(), g)
    for name, ours, theirs, want in zip(
        ("W", "b", "u"),
        torch.autograd.grad(y, [layer.W, layer.b, x], g),
        torch.autograd.grad(wrap(layer, "one_step", stop=Stop(rtol=1e-6))(x), [layer.W, layer.b, x], g),
        truth,
        strict=True,
    ):
        assert cosine(ours, want) > cosine(theirs, want), name
        assert cosine(ours, want) > 0.95, name


@pytest.mark.parametrize("kind", ["contracting", "expanding"])
def test_refinement_reaches_the_tolerance_of_the_adjoint_and_tells_its_residual(kind: str) -> None:
    A = symmetric([0.95, 0.6, -0.3, 0.2] if kind == "contracting" else [1.6, 0.6, -0.3, -1.4])
    g = torch.randn(3, 4, dtype=F64)
    exact = torch.linalg.solve(torch.eye(4, dtype=F64) - A.T, g.T).T
    residuals = []
    for refine in (1, 2, 8):
        x = torch.randn(3, 4, dtype=F64, requires_grad=True)
        sol = deqlm.solve(
            lambda z, x: z @ A.T + x,
            torch.zeros_like(x),
            args=(x,),
            gradient=Shine(memory=2, refine=refine),
            stop=SHARP,
        )
        (w,) = torch.autograd.grad(sol.z, x, g)
        true = (w @ A + g - w).norm(dim=1) / g.norm(dim=1)
        torch.testing.assert_close(sol.adjoint.residual, true, rtol=1e-6, atol=1e-12)
        assert sol.adjoint.cost.vjps <= refine + 2
        residuals.append(true.max().item())
    assert residuals[0] > residuals[1] > residuals[2]
    assert residuals[2] < 1e-6
    assert sol.adjoint.status.tolist() == [Status.CONVERGED] * 3
    torch.testing.assert_close(w, exact, rtol=1e-5, atol=1e-5)


def test_too_little_refinement_is_a_budget_and_no_failure() -> None:
    layer = TanhLayer(12, size=0.95)
    deq = wrap(layer, Shine(memory=1, refine=1), on_failure="raise")
    y, sol = deq(torch.randn(2, 12, dtype=F64), with_stats=True)
    y.sum().backward()
    assert sol.adjoint.status.tolist() == [Status.BUDGET] * 2
    assert (sol.adjoint.residual > 1e-6).all()


def test_the_point_and_the_count_are_those_of_the_plain_solve() -> None:
    layer = TanhLayer(6)
    x = torch.randn(4, 6, dtype=F64) * torch.tensor([[3.0], [0.1], [1.0], [0.0]], dtype=F64)
    one, other = (wrap(layer, g, stop=Stop(rtol=1e-6))(x, with_stats=True) for g in (Shine(), Implicit()))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1].steps, other[1].steps)


def test_without_two_evaluations_it_is_one_step() -> None:
    layer = TanhLayer(5)
    x = torch.randn(2, 5, dtype=F64, requires_grad=True)
    stop = Stop(max_iter=1, rtol=0)
    deq = wrap(layer, Shine(), stop=stop)
    with torch.no_grad():
        z = deq(x)
    (got,) = torch.autograd.grad(deq(x).sum(), layer.W)
    torch.testing.assert_close(got, torch.autograd.grad(layer(z, x).sum(), layer.W)[0])


def test_a_point_that_f_writes_over_later_is_remembered_as_it_was() -> None:
    out = torch.zeros(1, 1)

    def f(z: Tensor) -> Tensor:
        return torch.mul(z, 0.5, out=out)

    watched = Watched(f, memory=1)
    z = torch.full((1, 1), 4.0)
    watched(z)
    z.fill_(1.0)
    watched(z)
    s, y, _ = watched.changes()
    assert (s.item(), y.item()) == (-3.0, 1.5)


@pytest.mark.parametrize("solver", ["newton", "newton_krylov", {"name": "fallback"}])
def test_solvers_that_differentiate_f_are_watched_too(solver: object) -> None:
    layer = TanhLayer(3, size=0.3)
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    deq = DEQ(layer, inject="argument", solver=solver, gradient=Shine(refine=6), stop=Stop(max_iter=200, rtol=1e-10))
    y = deq(x)
    g = torch.randn(2, 3, dtype=F64)
    (got,) = torch.autograd.grad(y, layer.W, g)
    torch.testing.assert_close(got, dense_gradients(layer, y.detach(), g)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 0}, r"memory must be a whole number >= 1, got 0"),
        ({"refine": -1}, r"refine must be a whole number >= 0, got -1"),
        ({"refine": True}, r"refine must be a whole number >= 0, got True"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shine(**options)


def test_a_backward_solve_is_not_asked_for() -> None:
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    y, sol = DEQ(TanhLayer(3), inject="argument", gradient=Shine(), stop=SHARP)(x, with_stats=True)
    y.sum().backward()
    assert sol.adjoint.cost.vjps == 0
    assert not sol.adjoint.ran
    assert isinstance(Implicit().backward(), Solve)
