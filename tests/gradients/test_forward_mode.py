"""Forward mode: the tangent of a solved point, against dense algebra, finite differences and reverse mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import deqlm
from deqlm import DEQ, Implicit, Solve, Status, Stop
from deqlm.testing.gradients.layers import SHARP, TanhLayer, wrap

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
"""torch warns of itself when it loads its forward mode."""


def pushed(W: Tensor, x: Tensor, tangents: tuple[Tensor, Tensor], **options: object) -> deqlm.Solution:
    """Return the solution of z = tanh(z W^T + x) with dual W and x; read it within the level."""
    dual_W, dual_x = (forward_ad.make_dual(t, v) for t, v in zip((W, x), tangents, strict=True))
    settings = {"stop": SHARP, "gradient": Implicit(solve=Solve("anderson", SHARP)), **options}
    return deqlm.solve(lambda z, x: torch.tanh(z @ dual_W.T + x), torch.zeros_like(x), args=(dual_x,), **settings)


def dense(W: Tensor, z: Tensor, dW: Tensor, dx: Tensor) -> Tensor:
    d = 1 - z**2
    J = d[:, :, None] * W
    t = d * (z @ dW.T + dx)
    return torch.linalg.solve(torch.eye(len(W), dtype=F64) - J, t)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("solver", ["anderson", "broyden", "fixed_point", "newton"])
def test_the_tangent_is_the_dense_one(solver: str, grad: bool) -> None:
    W, x = 0.3 * torch.randn(4, 4, dtype=F64), torch.randn(3, 4, dtype=F64)
    dW, dx = torch.randn(4, 4, dtype=F64), torch.randn(3, 4, dtype=F64)
    if solver == "newton":
        options = {"solver": deqlm.Newton(jacobian=lambda z: (1 - torch.tanh(z @ W.T + x) ** 2)[:, :, None] * W)}
    else:
        options = {"solver": solver}
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        sol = pushed(W, x, (dW, dx), **options)
        z, v = forward_ad.unpack_dual(sol.z)
        assert sol.converged.all()
    torch.testing.assert_close(v, dense(W, z, dW, dx), rtol=1e-9, atol=1e-10)


def test_finite_differences_agree_in_forward_mode() -> None:
    def solved(W: Tensor, x: Tensor) -> Tensor:
        options = {"args": (x,), "gradient": Implicit(solve=Solve("anderson", SHARP)), "stop": SHARP}
        return deqlm.solve(lambda z, x: torch.tanh(z @ W.T + x), torch.zeros_like(x), **options).z

    inputs = (0.3 * torch.randn(3, 3, dtype=F64)).requires_grad_(), torch.randn(2, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(solved, inputs, check_forward_ad=True, check_backward_ad=True)


def test_a_module_with_dual_parameters_and_a_tree_of_states() -> None:
    layer = TanhLayer(4)
    x = torch.randn(2, 4, dtype=F64)
    deq = wrap(layer, Implicit(solve=Solve("anderson", SHARP)))
    dW = torch.randn(4, 4, dtype=F64)
    weight = layer.W.detach()
    del layer.W
    with forward_ad.dual_level():
        layer.W = forward_ad.make_dual(weight, dW)
        z, v = forward_ad.unpack_dual(deq(x))
    d = 1 - z**2
    want = torch.linalg.solve(torch.eye(4, dtype=F64) - d[:, :, None] * weight, d * (z @ dW.T))
    torch.testing.assert_close(v, want, rtol=1e-9, atol=1e-10)
    x = torch.ones(2, 1, dtype=F64)
    with forward_ad.dual_level():
        a = forward_ad.make_dual(0.5 * x, x)
        f = lambda s: {"p": 0.5 * s["q"] + a, "q": 0.5 * s["p"]}  # noqa: E731
        sol = deqlm.solve(f, {"p": x, "q": x}, stop=SHARP, gradient=Implicit(solve=Solve("anderson", SHARP)))
        tangents = {name: forward_ad.unpack_dual(t).tangent for name, t in sol.z.items()}
    torch.testing.assert_close(tangents["p"], x / 0.75)
    torch.testing.assert_close(tangents["q"], 0.5 * x / 0.75)


def test_where_nothing_is_dual_there_is_no_tangent_and_the_same_bits() -> None:
    x = torch.randn(2, 4, dtype=F64)
    deq = DEQ(TanhLayer(4), inject="argument", stop=SHARP)
    with forward_ad.dual_level():
        y = deq(x)
        assert forward_ad.unpack_dual(y).tangent is None
    assert torch.equal(y, deq(x))


def test_rows_that_fail_have_the_tangent_zero_and_others_their_own() -> None:
    W, x = 0.3 * torch.randn(4, 4, dtype=F64), torch.randn(3, 4, dtype=F64)
    dW, dx = torch.randn(4, 4, dtype=F64), torch.randn(3, 4, dtype=F64)
    x[1] = torch.nan
    with forward_ad.dual_level():
        sol = pushed(W, x, (dW, dx), on_failure="ignore")
        z, v = forward_ad.unpack_dual(sol.z)
    assert sol.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert not v[1].any()
    torch.testing.assert_close(v[[0, 2]], dense(W, z, dW, dx)[[0, 2]], rtol=1e-9, atol=1e-10)


def test_the_solve_of_the_tangent_is_told() -> None:
    W, x = 0.3 * torch.randn(4, 4, dtype=F64), torch.randn(3, 4, dtype=F64)
    with torch.no_grad(), forward_ad.dual_level():
        sol = pushed(W, x, (W, x))
        assert sol.adjoint.converged.all()
        assert sol.adjoint.cost.jvps > 0
        failing = Implicit(solve=Solve("fixed_point", Stop(max_iter=1, rtol=1e-9)))
        with pytest.warns(deqlm.ConvergenceWarning, match="backward solve: some rows ended MAX_ITER"):
            pushed(W, x, (W, x), gradient=failing)


def test_reverse_mode_over_a_tangent_is_refused_and_of_the_point_is_right() -> None:
    W, x = (0.3 * torch.randn(4, 4, dtype=F64)).requires_grad_(), torch.randn(3, 4, dtype=F64)
    with forward_ad.dual_level():
        z, v = forward_ad.unpack_dual(pushed(W, x, (torch.randn(4, 4, dtype=F64), x)).z)
    with pytest.raises(RuntimeError, match="the tangent of a solve has no reverse mode"):
        torch.autograd.grad(v.sum(), W, retain_graph=True)
    (got,) = torch.autograd.grad(z.sum(), W)
    assert got.isfinite().all()


@pytest.mark.parametrize("gradient", ["phantom", "neumann", "one_step", "shine"])
def test_other_methods_say_that_they_have_no_forward_mode(gradient: str) -> None:
    W, x = torch.zeros(4, 4), torch.zeros(2, 4)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=f"gradient '{gradient}' has no forward mode: use"):
        pushed(W, x, (W + 1, x + 1), gradient=gradient, stop=Stop())
