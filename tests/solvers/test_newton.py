"""Dense Newton: order of convergence, true counts and prices, where Jacobians come from, rows that are singular."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import exact_rows, linear, normal, tanh_layer
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import Newton, Solve, Status, Stop
from deqlm_solvers.loop.derivative import NoDerivativeError
from solvers.differentiated import SineForward, SineOnce

SHARP = Stop(max_iter=500, rtol=1e-12)


def dense(f, z: Tensor, steps: int) -> list[Tensor]:
    """Return the points of Newton's method on one vector, full steps, by a Jacobian from central differences."""
    points, eye, h = [z], torch.eye(len(z), dtype=z.dtype), 1e-6
    for _ in range(steps):
        J = torch.stack([(f(z + h * e) - f(z - h * e)) / (2 * h) for e in eye], dim=1)
        z = z + torch.linalg.solve(eye - J, f(z) - z)
        points.append(z)
    return points


def test_its_points_are_those_of_newton():
    problem = tanh_layer(0.9, B=3, N=6)
    f = Counted(problem.f)
    Solve(Newton(), Stop(max_iter=4 * 7, rtol=0))(f, problem.z0())
    tried = [z for z in f.points if z.dtype == torch.float64][::2]
    for i in range(3):
        alone = lambda z, i=i: problem.f(z.expand(3, -1))[i]  # noqa: E731
        for k, want in enumerate(dense(alone, problem.z0()[i], 3)):
            assert (tried[k][i] - want).norm() <= 1e-7 * want.norm().clamp_min(1)


def test_convergence_is_quadratic():
    problem = tanh_layer(0.9)
    sol = Solve(Newton(), SHARP.replace(trace=True, rtol=1e-15, max_iter=13 * 7 + 1))(problem.f, problem.z0())
    first, *_, before, last = [t for t in sol.trace.amax(1).tolist() if t > 1e-13]
    assert last <= 10 * before**2 / first


@pytest.mark.parametrize("rho", [0.99, 1.1, 3.0])
def test_a_linear_map_takes_one_step(rho):
    for kind in ("symmetric", "non_normal", "rotation"):
        problem = linear(kind, rho)
        sol = Solve(Newton(), Stop(max_iter=14, rtol=1e-10))(problem.f, problem.z0())
        assert sol.converged.all()
        assert (sol.steps == 2).all()
        assert ((sol.z - problem.truth).norm(dim=1) <= 1e-9 * problem.kappa * problem.truth.norm(dim=1)).all()


def test_hard_maps_up_to_128_unknowns():
    b = normal(5, 4, 128)
    W = normal(6, 128, 128)
    W = W * 1.5 / torch.linalg.eigvals(W).abs().max()
    for f in (
        lambda z: torch.tanh(z @ W.to(z).T + b.to(z)),
        lambda z: torch.tanh(-1.6 * z + b.to(z)),
        lambda z: 3.3 * z * (1 - z),
    ):
        for dtype, rtol in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
            sol = Solve(Newton(), Stop(max_iter=30 * 129, rtol=rtol))(f, torch.full(b.shape, 0.5, dtype=dtype))
            z = sol.z.double()
            assert ((f(z) - z).norm(dim=1) <= 1.05 * rtol * f(z).norm(dim=1)).all(), sol.summary()


def test_counts_are_those_of_a_counting_map():
    problem = tanh_layer(0.9)
    for max_iter in (14, 30, 100):
        f = Counted(problem.f)
        sol = Solve(Newton(), Stop(max_iter=max_iter, rtol=1e-12))(f, problem.z0())
        points = int(sol.steps.max())
        jacobians = f.calls - points
        assert sol.cost.evaluations == f.calls
        assert sol.cost.row_evaluations == 4 * f.calls
        assert sol.cost.jvps == 12 * jacobians
        assert points - 1 <= jacobians <= points
        assert points + sol.cost.jvps <= max_iter


@pytest.mark.parametrize(("unknowns", "least"), [(1, 3), (12, 14), (128, 130)])
def test_what_cannot_pay_one_step_is_refused(unknowns, least):
    f = lambda z: 0.5 * z + 1  # noqa: E731
    z0 = torch.zeros(2, unknowns)
    assert Solve(Newton(), Stop(max_iter=least))(f, z0).converged.all()
    with pytest.raises(ValueError, match=rf"max_iter must be >= {least}, .*'newton', got {least - 1}"):
        Solve(Newton(), Stop(max_iter=least - 1))(f, z0)
    with pytest.raises(ValueError, match=r"max_iter must be >= 3, .*got 2"):
        Solve(Newton(jacobian=lambda z: 0.5 * torch.eye(unknowns).expand(2, -1, -1)), Stop(max_iter=2))(f, z0)


def test_a_budget_makes_the_steps_it_can_pay():
    problem = tanh_layer(0.9)
    for max_iter, points in ((26, 2), (38, 2), (39, 3)):
        f = Counted(problem.f)
        sol = Solve(Newton(), Stop(max_iter=max_iter, rtol=0))(f, problem.z0())
        assert (sol.status == Status.BUDGET).all()
        assert (sol.steps == points).all()
        assert f.calls == sol.cost.evaluations == 2 * points
        assert sol.cost.jvps == 12 * points
    error = (sol.z - problem.truth).norm(dim=1)
    assert (error < 1e-2 * problem.truth.norm(dim=1)).all(), "z_3, not a point before"


def test_a_jacobian_that_the_user_computes():
    problem = tanh_layer(0.9)
    given = Newton(
        jacobian=lambda z: torch.autograd.functional.jacobian(lambda t: problem.f(t).sum(0), z).movedim(1, 0)
    )
    f = Counted(problem.f)
    sol = Solve(given, Stop(max_iter=40, rtol=1e-12))(f, problem.z0())
    own = Solve(Newton(), SHARP)(problem.f, problem.z0())
    assert sol.converged.all()
    torch.testing.assert_close(sol.z, own.z, rtol=1e-12, atol=1e-13)
    assert sol.steps.tolist() == own.steps.tolist()
    assert sol.cost.evaluations == f.calls == sol.steps.max()
    assert sol.cost.jvps == f.calls - 1


def test_a_wrong_jacobian_is_named():
    f, z0 = (lambda z: 0.5 * z + 1), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"shape of jacobian\(z\) must be \(B, N, N\) = \(2, 3, 3\), got \(3, 3\)"):
        Solve(Newton(jacobian=lambda z: torch.eye(3)))(f, z0)
    with pytest.raises(TypeError, match="jacobian must return a tensor, got int"):
        Solve(Newton(jacobian=lambda z: 0))(f, z0)
    with pytest.raises(TypeError, match="jacobian must be a function or None, got int"):
        Newton(jacobian=3)


@pytest.mark.parametrize("damping", [0, 1.5, "half"])
def test_a_damping_out_of_range_is_refused(damping):
    with pytest.raises(ValueError, match=r"damping must be .*in \(0, 1\]"):
        Newton(damping=damping)


def test_plain_data():
    assert Newton.from_dict(Newton(damping=1).to_dict()) == Newton(damping=1)
    with pytest.raises(TypeError, match="no plain form"):
        Newton(jacobian=lambda z: z).to_dict()


def test_a_singular_row_takes_a_plain_step_and_the_others_do_not_notice():
    b = normal(0, 3, 4)
    gain = torch.tensor([[0.5], [1.0], [0.3]], dtype=torch.float64)
    f = exact_rows(b, gain)
    # z -> z + 1 in row 1: I - J is exactly zero, every step adds damping
    spoiled = lambda z: torch.where(gain == 1, z + 1, f(z))  # noqa: E731
    stop = Stop(max_iter=61, rtol=1e-10, trace=True)
    sol = Solve(Newton(damping=0.25), stop)(spoiled, torch.zeros_like(b))
    whole = Solve(Newton(damping=0.25), stop)(f, torch.zeros_like(b))
    assert_same_rows(sol, [0, 2], whole, [0, 2])
    assert sol.converged.tolist() == [True, False, True]
    points: list[Tensor] = []
    Solve(Newton(damping=0.25), Stop(max_iter=26, rtol=0))(
        lambda z: (points.append(z.clone()), z + 1)[1], torch.zeros(1, 1)
    )
    assert sorted({round(z.item(), 6) for z in points if not torch._C._functorch.is_functorch_wrapped_tensor(z)})[
        :3
    ] == [0, 0.25, 0.5]


def test_a_step_that_overshoots_is_shortened():
    """Newton's full step on arctan diverges from 1.4 on."""
    f = lambda z: z - torch.atan(z)  # noqa: E731
    z0 = torch.tensor([[1.0], [3.0], [20.0], [-100.0]], dtype=torch.float64)
    sol = Solve(Newton(), Stop(max_iter=100, rtol=0, atol=1e-10))(f, z0)
    assert sol.converged.all()
    assert sol.z.abs().max() <= 1e-9


def test_where_forward_mode_fails_reverse_mode_gives_the_rows():
    b = normal(1, 3, 5)
    W = normal(2, 5, 5) / 3
    truth = Solve(Newton(), SHARP)(lambda z: torch.sin(z @ W.T) + b, torch.zeros_like(b))
    f = Counted(lambda z: SineOnce.apply(z @ W.T) + b)
    sol = Solve(Newton(), SHARP)(f, torch.zeros_like(b))
    torch.testing.assert_close(sol.z, truth.z, rtol=1e-12, atol=1e-13)
    assert sol.cost.evaluations == f.calls
    assert sol.cost.jvps == 0
    assert sol.cost.vjps == truth.cost.jvps
    forward = Solve(Newton(), SHARP)(lambda z: SineForward.apply(z @ W.T) + b, torch.zeros_like(b))
    torch.testing.assert_close(forward.z, truth.z, rtol=1e-12, atol=1e-13)


def test_where_nothing_works_the_reason_is_told():
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return torch.sin(z)

    with pytest.raises(NoDerivativeError, match=r"use 'anderson' or 'broyden'.*forward mode: .*; reverse mode: "):
        Solve(Newton(), SHARP)(lambda z: Nothing.apply(z) + 1, torch.zeros(1, 2).double())


def test_control_flow_that_reads_values():
    def f(z: Tensor) -> Tensor:
        shift = 1.0 if bool((z.detach().sum() > 1e9).any()) else 2.0
        return torch.sin(z) / 2 + shift

    sol = Solve(Newton(), Stop(max_iter=60, rtol=1e-6))(f, torch.zeros(2, 3))
    assert sol.converged.all()


def test_through_deqlm():
    W = normal(3, 6, 6) / 4
    x = normal(4, 5, 6)
    sol = deqlm.solve(lambda z, u: torch.tanh(z @ W.T + u), torch.zeros_like(x), args=(x,), solver="newton", stop=SHARP)
    assert sol.converged.all()
    assert sol.cost.jvps == 6 * (int(sol.steps.max()) - 1)
