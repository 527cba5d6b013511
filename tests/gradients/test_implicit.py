"""The implicit gradient: its backward solve and its second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import Implicit, Solve, Status, Stop
from deqlm.testing.gradients.layers import SHARP, TanhLayer, dense_gradients, wrap
from deqlm_solvers import Solver, StepSolver
from gradients.maps import symmetric

F64 = torch.float64
STEP_SOLVERS = [
    name
    for name in sorted(deqlm.SOLVERS)
    if issubclass(deqlm.SOLVERS[name], StepSolver) and "known_answers" in deqlm.SOLVERS[name].guarantees
]


class CountedBackward(torch.autograd.Function):
    """Identity that counts how often a gradient passes."""

    passes = 0

    @staticmethod
    def forward(ctx, t: Tensor) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        CountedBackward.passes += 1
        return g


def linear(A: Tensor, x: Tensor, gradient: Implicit, **options) -> deqlm.Solution:
    """Solve z = A z + x: the gradient for x is w itself."""
    return deqlm.solve(
        lambda z, x: z @ A.T + x, torch.zeros_like(x), args=(x,), gradient=gradient, stop=SHARP, **options
    )


def test_report_is_empty_before_backward_and_full_after() -> None:
    y, sol = wrap(TanhLayer(5), Implicit())(torch.randn(3, 5, dtype=F64), with_stats=True)
    adjoint = sol.adjoint
    assert not adjoint.ran
    assert adjoint.status is adjoint.steps is adjoint.residual is adjoint.converged is None
    assert "not run yet" in repr(adjoint)
    y.sum().backward()
    assert adjoint.ran
    assert adjoint.converged.tolist() == [True] * 3
    assert (adjoint.residual <= 1e-6).all()
    assert (adjoint.steps >= 1).all()
    assert adjoint.cost.vjps == int(adjoint.steps.max())
    assert "3 CONVERGED" in repr(adjoint)


def test_vjps_are_counted_truly_and_summed() -> None:
    layer = TanhLayer(5)
    u = torch.randn(2, 5, dtype=F64)
    sol = deqlm.solve(lambda z: CountedBackward.apply(layer(z, u)), torch.zeros_like(u), stop=SHARP)
    for backwards in (1, 2):
        CountedBackward.passes = 0
        sol.z.sum().backward(retain_graph=True)
        assert CountedBackward.passes == int(sol.adjoint.steps.max()) + 1  # the last one leaves for the parameters
        assert sol.adjoint.cost.vjps == backwards * int(sol.adjoint.steps.max())


def test_f_is_not_called_in_backward() -> None:
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * torch.tanh(z) + u

    u = torch.randn(2, 4, dtype=F64, requires_grad=True)
    sol = deqlm.solve(f, torch.zeros(2, 4, dtype=F64), stop=SHARP)
    before = calls
    assert before == sol.cost.evaluations
    sol.z.sum().backward()
    assert calls == before


@pytest.mark.parametrize("policy", ["warn", "raise", "ignore"])
def test_backward_solve_that_does_not_converge(policy: str) -> None:
    gradient = Implicit(solve=Solve("fixed_point", Stop(max_iter=3, rtol=1e-10)))
    x = torch.randn(3, 4, dtype=F64, requires_grad=True)
    sol = linear(symmetric([0.9, 0.5, -0.3, 0.1]), x, gradient, on_failure=policy)
    if policy == "raise":
        with pytest.raises(deqlm.ConvergenceError, match=r"backward solve: 3 MAX_ITER"):
            sol.z.sum().backward()
        return
    if policy == "warn":
        with pytest.warns(
            deqlm.ConvergenceWarning, match=r"backward solve: some rows ended MAX_ITER.*Implicit\(solve="
        ):
            sol.z.sum().backward()
    else:
        sol.z.sum().backward()
    assert sol.adjoint.status.tolist() == [Status.MAX_ITER] * 3
    assert x.grad.isfinite().all()


def test_backward_solve_that_diverges_adds_zero() -> None:
    x = torch.randn(2, 3, dtype=F64, requires_grad=True)
    gradient = Implicit(solve=Solve("fixed_point", Stop(max_iter=500, rtol=1e-6)))
    sol = linear(symmetric([1.5, 0.5, -0.3]), x, gradient, on_failure="ignore")
    assert sol.converged.all()
    sol.z.sum().backward()
    assert sol.adjoint.status.tolist() == [Status.DIVERGED] * 2
    assert (x.grad == 0).all()


@pytest.mark.parametrize("norm", ["l2", "rms"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_tolerance_is_relative_to_the_incoming_gradient_of_each_row(norm: str, dtype: torch.dtype) -> None:
    rtol = 1e-3
    A = symmetric([0.95, 0.5, -0.7, 0.1, *[0.3] * 60]).to(dtype)
    try:
        gradient = Implicit(solve=Solve("fixed_point", Stop(max_iter=500, rtol=rtol, norm=norm)))
    except ValueError:
        assert norm != "l2"
        return
    x = torch.randn(5, 64, dtype=dtype, requires_grad=True)
    sol = deqlm.solve(lambda z, x: z @ A.T + x, torch.zeros_like(x), args=(x,), gradient=gradient)
    size = torch.tensor([1e-12, 1.0, 0.0, 1e12, 1e-30], dtype=dtype)[:, None]
    g = torch.randn(5, 64, dtype=dtype) * size
    (w,) = torch.autograd.grad(sol.z, x, g)
    w, g, A = w.double(), g.double(), A.double()
    residual = (w @ A + g - w).norm(dim=1)
    assert (residual <= 1.001 * rtol * g.norm(dim=1)).all()
    assert (residual[g.norm(dim=1) > 0] >= 0.1 * rtol * g.norm(dim=1)[g.norm(dim=1) > 0]).all()  # not solved further
    assert (w[2] == 0).all()
    assert sol.adjoint.status.tolist() == [Status.CONVERGED] * 5
    torch.testing.assert_close(sol.adjoint.residual[:2], (residual / g.norm(dim=1))[:2], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_losses_near_the_ends_of_float64_take_the_same_steps(size: float) -> None:
    A, x = symmetric([0.95, 0.5, -0.7, 0.1]), torch.randn(3, 4, dtype=F64, requires_grad=True)
    sol = linear(A, x, Implicit())
    plain, scaled = [], []
    for factor, found in ((1.0, plain), (size, scaled)):
        (w,) = torch.autograd.grad(sol.z, x, torch.full_like(x, factor), retain_graph=True)
        found += [w / factor, sol.adjoint.steps.clone()]
        assert sol.adjoint.converged.all()
    torch.testing.assert_close(scaled[0], plain[0], rtol=1e-12, atol=1e-14)
    assert torch.equal(scaled[1], plain[1])


@pytest.mark.parametrize("name", STEP_SOLVERS)
def test_any_step_solver_solves_the_adjoint(name: str) -> None:
    layer = TanhLayer(6, size=0.8)
    x = torch.randn(3, 6, dtype=F64, requires_grad=True)
    y = wrap(layer, Implicit(solve=Solve(name, SHARP)))(x)
    got = torch.autograd.grad(y.sum(), [layer.W, layer.b, x])
    for ours, truth in zip(got, dense_gradients(layer, y.detach(), torch.ones_like(y)), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("registries")
def test_a_whole_solver_that_knows_no_atol_works_or_is_refused_at_construction() -> None:
    @deqlm.options
    class Whole(Solver):
        honours = frozenset({"max_iter", "rtol"})

        def solve(self, f, z0, stop, frame):
            return deqlm.Anderson().solve(f, z0, stop, frame)

    try:
        gradient = Implicit(solve=Solve(Whole(), Stop(max_iter=300, rtol=1e-12)))
    except ValueError:
        return
    layer = TanhLayer(4)
    x = torch.randn(2, 4, dtype=F64, requires_grad=True)
    y = wrap(layer, gradient)(x)
    (got,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(got, dense_gradients(layer, y.detach(), torch.ones_like(y))[2], rtol=1e-10, atol=1e-10)


def test_a_map_that_expands_but_can_be_solved() -> None:
    A = symmetric([1.5, -1.4, 0.5, 0.2])
    x = torch.randn(3, 4, dtype=F64, requires_grad=True)
    sol = linear(A, x, Implicit(solve=Solve("anderson", SHARP)))
    assert sol.converged.all()
    g = torch.randn(3, 4, dtype=F64)
    (w,) = torch.autograd.grad(sol.z, x, g)
    assert sol.adjoint.converged.all()
    torch.testing.assert_close(w, torch.linalg.solve(torch.eye(4, dtype=F64) - A.T, g.T).T, rtol=1e-10, atol=1e-10)


def test_default_adjoint_is_that_of_the_design() -> None:
    assert Implicit().solve == "auto"
    assert Implicit().backward() == Solve(deqlm.Anderson(memory=12), Stop(max_iter=200, rtol="auto"))
    assert deqlm.DEQ(torch.nn.Identity()).gradient == Implicit()


@pytest.mark.parametrize("name", ["W", "b"])
def test_a_weight_changed_in_place_before_backward_raises(name: str) -> None:
    class Gated(TanhLayer):
        def forward(self, z: Tensor, u: Tensor) -> Tensor:
            return self.b * super().forward(z, u)

    layer = Gated(4)
    y = wrap(layer, Implicit())(torch.randn(2, 4, dtype=F64))
    with torch.no_grad():
        getattr(layer, name).mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_constant_map() -> None:
    c = torch.randn(2, 3, requires_grad=True)
    deqlm.solve(lambda z: c * 2, torch.zeros(2, 3)).z.sum().backward()
    torch.testing.assert_close(c.grad, torch.full_like(c, 2.0))


def test_start_gets_no_gradient() -> None:
    z0 = torch.zeros(2, 4, dtype=F64, requires_grad=True)
    layer = TanhLayer(4)
    z = deqlm.solve(layer, z0, args=(torch.randn(2, 4, dtype=F64),), stop=SHARP).z
    z.sum().backward()
    assert z0.grad is None or (z0.grad == 0).all()


@pytest.mark.parametrize("name", ["atol", "keep"])
def test_settings_that_make_the_gradient_depend_on_the_loss_are_refused(name: str) -> None:
    stop = {"atol": Stop(atol=1e-3), "keep": Stop(keep="best_f")}[name]
    with pytest.raises(ValueError, match=rf"solve\.stop\.{name} must be"):
        Implicit(solve=Solve("anderson", stop))


def test_a_budget_for_the_adjoint_makes_exactly_so_many_products() -> None:
    A = symmetric([0.9, 0.5, -0.3, 0.1])
    x = torch.randn(2, 4, dtype=F64, requires_grad=True)
    sol = linear(A, x, Implicit(solve=Solve("fixed_point", Stop(max_iter=3, rtol=0))))
    (w,) = torch.autograd.grad(sol.z.sum(), x)
    g = torch.ones(2, 4, dtype=F64)
    want = g + g @ A + g @ A @ A + g @ A @ A @ A
    torch.testing.assert_close(w, want, rtol=1e-12, atol=1e-13)
    assert sol.adjoint.status.tolist() == [Status.BUDGET] * 2
    assert sol.adjoint.cost.vjps == 3


def test_a_tolerance_below_the_dtype_warns_in_backward_too() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    gradient = Implicit(solve=Solve("anderson", Stop(rtol=1e-9)))
    y = wrap(TanhLayer(4, dtype=torch.float32), gradient, stop=Stop(rtol=1e-4), on_failure="ignore")(x)
    with pytest.warns(UserWarning, match="below what float32 resolves"):
        y.sum().backward()
