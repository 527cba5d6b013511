"""A solver and a gradient method of one's own, used by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Gradient, StepSolver, Stop, options, register_gradient, register_solver
from deqlm_solvers import Solver

pytestmark = pytest.mark.usefixtures("registries")


def register() -> None:
    """Register a damped Picard step and a gradient of two steps."""

    @register_solver("toy.cautious", "cautious")
    @options
    class Cautious(StepSolver):
        share: float = 0.5

        def init(self, z):
            return 0

        def step(self, f, at, state):
            return at.z + self.share * at.r, state + 1

    @register_gradient("two_steps")
    @options
    class TwoSteps(Gradient):
        weight: float = 1.0

        def connect(self, f, z, adjoint):
            adjoint.growth = torch.zeros(len(z))
            y = f(f(z))
            return z + self.weight * (y - z)


def slope(y: Tensor, x: Tensor) -> float:
    return torch.autograd.grad(y.sum(), x)[0].mean().item()


@pytest.mark.parametrize("solver", ["toy.cautious", "cautious", {"name": "toy.cautious", "share": 0.9}])
@pytest.mark.parametrize("gradient", ["two_steps", {"name": "two_steps", "weight": 1.0}])
def test_used_by_name_through_deq(solver: object, gradient: object) -> None:
    register()
    assert "toy.cautious" in deqlm.SOLVERS
    assert "two_steps" in list(deqlm.GRADIENTS)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    deq = DEQ(lambda z: 0.5 * z, solver=solver, gradient=gradient, stop=Stop(rtol=1e-8))
    y, sol = deq(x, with_stats=True)
    assert sol.converged.all()
    torch.testing.assert_close(y, x, rtol=1e-7, atol=0)
    assert slope(y, x) == pytest.approx(0.5 + 0.25)
    assert sol.adjoint.growth.tolist() == [0.0] * 3
    assert not sol.adjoint.ran


def test_used_through_the_functional_interface_and_for_the_adjoint() -> None:
    register()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    adjoint = {"name": "implicit", "solve": {"solver": "toy.cautious", "stop": {"max_iter": 200, "rtol": 1e-9}}}
    z = deqlm.solve(lambda z, x: 0.5 * z + x, torch.zeros_like(x), args=(x,), solver="cautious", gradient=adjoint).z
    assert slope(z, x) == pytest.approx(2.0)


def test_failed_rows_are_kept_out_for_free() -> None:
    register()
    layer = nn.Linear(2, 2, dtype=torch.float64)
    x = torch.randn(3, 2, dtype=torch.float64)
    x[1] = torch.nan
    DEQ(layer, gradient="two_steps", solver="toy.cautious", on_failure="ignore")(x).sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_unrolled_refuses_a_solver_that_does_not_say_it_can_be_differentiated() -> None:
    register()
    with pytest.raises(ValueError, match=r"cannot differentiate the steps of solver 'toy\.cautious'"):
        DEQ(nn.Tanh(), solver="toy.cautious", gradient="unrolled")


def test_unrolled_takes_one_that_does() -> None:
    @register_solver("half")
    @options
    class Half(StepSolver):
        guarantees = StepSolver.guarantees | {"differentiable"}

        def init(self, z):
            return None

        def step(self, f, at, state):
            return at.z + 0.5 * at.r, state

    x = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    y = DEQ(lambda z: 0.5 * z, solver="half", gradient="unrolled", stop=Stop(max_iter=2, rtol=0))(x)
    assert slope(y, x) == pytest.approx(0.25 + 0.75 * 0.25)


def test_a_whole_solver_under_every_gradient_but_unrolled() -> None:
    @register_solver("delegating")
    @options
    class Delegating(Solver):
        honours = frozenset({"max_iter", "rtol"})

        def solve(self, f, z0, stop, frame):
            return deqlm.Anderson().solve(f, z0, stop, frame)

    for gradient in ("implicit", "phantom", "one_step"):
        layer = nn.Linear(2, 2)
        DEQ(layer, solver="delegating", gradient=gradient, on_failure="ignore")(torch.randn(3, 2)).sum().backward()
        assert layer.weight.grad is not None
    with pytest.raises(ValueError, match="cannot differentiate the steps"):
        DEQ(nn.Tanh(), solver="delegating", gradient="unrolled")
    with pytest.raises(ValueError, match=r"cannot honour Stop\(trace=True\)"):
        DEQ(nn.Tanh(), solver="delegating", stop=Stop(trace=True))


def test_names_are_guarded() -> None:
    register()
    with pytest.raises(ValueError, match="gradient name 'implicit' is taken; pass override=True"):
        register_gradient("implicit")
    with pytest.raises(ValueError, match="solver name must be lower-case words"):
        register_solver("Anderson")
    with pytest.raises(TypeError, match="gradient 'thing' must extend Gradient"):
        register_gradient("thing")(nn.Linear)


def test_registration_does_not_outlive_a_test() -> None:
    assert "two_steps" not in deqlm.GRADIENTS
    assert "toy.cautious" not in deqlm.SOLVERS
