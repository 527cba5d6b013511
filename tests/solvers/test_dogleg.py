"""The dogleg: its path, its radius, maps that searches along Newton's direction miss, true counts, singular rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import linear, normal, tanh_layer
from deqlm_solvers import Dogleg, Evaluation, Newton, Solve, Status, Stop, forecast_solve
from deqlm_solvers.memory.meter import MemoryMeter
from solvers.classics import CLASSICS, F64, generalised_rosenbrock

STOP = Stop(max_iter=1000, rtol=1e-8, atol=1e-8)


class Affine:
    """What a step sees of a map with the Jacobian I - system."""

    def __init__(self, system):
        self.system = system

    def jacobian(self, z, known):
        return torch.eye(z.shape[1], dtype=z.dtype) - self.system


@given(st.integers(0, 200), st.floats(-3, 3))
def test_a_step_ends_on_the_path_at_the_radius(seed, digits):
    """Between the minimum along the gradient and Newton's point, on the segment between the two (Nocedal, Wright)."""
    M, r = normal(seed, 2, 5, 5), normal(seed + 1, 2, 5)
    z = normal(seed + 2, 2, 5)
    solver, f = Dogleg(), Affine(M)
    _, state = solver.step(f, Evaluation(z, z + r), solver.init(z))  # type: ignore[arg-type]
    newton = torch.linalg.solve(M, r)
    gradient = (M.transpose(1, 2) @ r[..., None])[..., 0]
    cauchy = gradient * (gradient.square().sum(1) / (M @ gradient[..., None]).square().sum((1, 2)))[:, None]
    state.radius = 10**digits * newton.norm(dim=1, keepdim=True)
    step = solver._advance(state)
    assert (step.norm(dim=1) <= (1 + 1e-9) * state.radius[:, 0]).all()
    torch.testing.assert_close(state.length, step.norm(dim=1, keepdim=True))
    left = (r - (M @ step[..., None])[..., 0]).norm(dim=1) / r.norm(dim=1)
    torch.testing.assert_close(state.linear[:, 0], left, rtol=1e-7, atol=1e-9)
    for i in range(2):
        radius = state.radius[i, 0]
        if newton[i].norm() <= radius:
            torch.testing.assert_close(step[i], newton[i], rtol=1e-7, atol=1e-9)
        elif cauchy[i].norm() >= radius:
            torch.testing.assert_close(step[i], cauchy[i] * radius / cauchy[i].norm(), rtol=1e-7, atol=1e-9)
        else:
            torch.testing.assert_close(step[i].norm(), radius)
            share = (step[i] - cauchy[i]).norm() / (newton[i] - cauchy[i]).norm()
            torch.testing.assert_close(step[i], cauchy[i] + share * (newton[i] - cauchy[i]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("system", CLASSICS[:-1], ids=lambda s: s.name)
def test_classic_systems(system, mirrored):
    f = system.mirrored if mirrored else system.map
    sol = Solve("dogleg", STOP)(f, system.z0)
    assert sol.converged.all(), sol.summary()
    assert system.F(sol.z).norm() <= 1.01e-8 * (1 + f(sol.z).norm())


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_curved_valley_that_line_searches_miss(mirrored):
    system = generalised_rosenbrock(10)
    f = system.mirrored if mirrored else system.map
    sol = Solve("dogleg", STOP)(f, system.z0)
    assert sol.converged.all()
    torch.testing.assert_close(sol.z, torch.ones_like(sol.z), rtol=1e-6, atol=0)
    assert not Solve("newton", STOP)(f, system.z0).converged.any()


@pytest.mark.parametrize("system", CLASSICS, ids=lambda s: s.name)
def test_accepted_residuals_fall(system):
    """A Jacobian is made at points that are accepted, and only there."""
    residuals = []

    def jacobian(z):
        residuals.append(system.F(z).norm().item())
        return torch.autograd.functional.jacobian(lambda t: system.map(t).sum(0), z).movedim(1, 0)

    Solve(Dogleg(jacobian=jacobian), STOP)(system.map, system.z0)
    assert residuals[0] == system.F(system.z0).norm()
    assert all(after < before for before, after in pairwise(residuals))


def test_a_minimum_that_is_no_solution_is_not_left():
    """|x^3 - 2x + 2| has one at the root of 2/3."""
    pit = CLASSICS[-1]
    least = pit.F(torch.full((1, 1), (2 / 3) ** 0.5, dtype=F64)).abs().item()
    sol = Solve("dogleg", Stop(max_iter=300, rtol=0, atol=1e-8))(pit.map, pit.z0)
    assert sol.status.item() == Status.MAX_ITER
    assert sol.residual.item() == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("rho", [0.99, 1.1, 3.0])
def test_a_linear_map_takes_one_step(rho):
    for kind in ("symmetric", "non_normal", "rotation"):
        problem = linear(kind, rho)
        sol = Solve("dogleg", Stop(max_iter=14, rtol=1e-10))(problem.f, problem.z0())
        assert sol.converged.all()
        assert (sol.steps == 2).all()


def test_where_newton_needs_no_search_its_points_are_newtons():
    problem = tanh_layer(0.9)
    stop = Stop(max_iter=500, rtol=1e-12)
    ours, newton = (Solve(s, stop)(problem.f, problem.z0()) for s in (Dogleg(), Newton()))
    assert ours.steps.tolist() == newton.steps.tolist()
    torch.testing.assert_close(ours.z, newton.z, rtol=1e-13, atol=1e-14)


def test_a_singular_row_goes_downhill():
    """I - J is singular at the start of row 0: Newton has no direction there, the gradient of ||r|| has one."""
    F = lambda x: torch.stack((x[:, 0].square() + x[:, 1] - 3, x[:, 0] + x[:, 1].square() - 3), 1)  # noqa: E731
    z0 = torch.tensor([[0.5, 0.5], [2.0, 0.0]], dtype=F64)
    assert torch.linalg.det(torch.autograd.functional.jacobian(lambda x: F(x[None])[0], z0[0])) == 0
    sol = Solve("dogleg", STOP.replace(trace=True))(lambda z: z - F(z), z0)
    assert sol.converged.all()
    assert sol.trace is not None
    assert sol.trace[1, 0] < sol.trace[0, 0]


def test_a_row_without_a_jacobian_stays_where_it_is():
    """The root of |z| has none at 0."""
    z0 = torch.tensor([[0.0], [2.0]], dtype=F64)
    sol = Solve("dogleg", Stop(max_iter=60, rtol=1e-8))(lambda z: 1 + 0.5 * z.abs().sqrt(), z0)
    assert sol.converged.tolist() == [False, True]
    assert sol.z[0].item() == 0


def test_counts_are_those_of_a_counting_map():
    system = CLASSICS[0]
    for max_iter in (4, 10, 31, 300):
        f = Counted(system.map)
        sol = Solve("dogleg", Stop(max_iter=max_iter, rtol=1e-10))(f, system.z0)
        jacobians = f.calls - int(sol.steps.max())
        assert sol.cost.evaluations == f.calls
        assert sol.cost.jvps == 2 * jacobians
        assert sol.steps.max() * 3 <= max_iter + 2
        assert int(sol.steps.max()) + sol.cost.jvps <= max_iter


def test_a_refused_trial_needs_no_jacobian():
    b = torch.tensor([[50.0]], dtype=F64)
    f = Counted(lambda z: z - (torch.exp(z) - b))
    sol = Solve("dogleg", STOP)(f, torch.zeros_like(b))
    assert sol.converged.all()
    assert sol.cost.jvps < sol.steps.item() - 2


@pytest.mark.parametrize(("unknowns", "least"), [(1, 3), (12, 14)])
def test_what_cannot_pay_one_step_is_refused(unknowns, least):
    with pytest.raises(ValueError, match=rf"max_iter must be >= {least}, .*'dogleg', got {least - 1}"):
        Solve("dogleg", Stop(max_iter=least - 1))(lambda z: 0.5 * z + 1, torch.zeros(2, unknowns))


def test_a_jacobian_that_the_user_computes():
    f = lambda z: z - torch.atan(z)  # noqa: E731
    given = Dogleg(jacobian=lambda z: (1 - 1 / (1 + z.square()))[..., None])
    z0 = torch.tensor([[3.0], [-7.0]], dtype=F64)
    sol, own = (Solve(s, STOP)(f, z0) for s in (given, Dogleg()))
    torch.testing.assert_close(sol.z, own.z)
    assert sol.steps.tolist() == own.steps.tolist()
    with pytest.raises(TypeError, match="has no plain form"):
        given.to_dict()
    with pytest.raises(TypeError, match="jacobian must be a function or None, got int"):
        Dogleg(jacobian=3)  # type: ignore[arg-type]


def test_it_says_what_it_holds():
    solve, N = Solve("dogleg", Stop(max_iter=10_000, rtol=1e-5)), 160
    meter = MemoryMeter(most=400)
    slopes = torch.linspace(-0.97, 0.97, N, dtype=F64)
    with meter:
        solve(meter.watch(lambda z: slopes * z + 1), torch.zeros(3, N, dtype=F64))
    assert forecast_solve(solve, 3, N, F64).total == pytest.approx(meter.peak, rel=0.05)
