"""Fallback: what its default chain reaches, which members are left out, and that nobody pays for what is not needed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import Anderson, Fallback, FixedPoint, Newton, NewtonKrylov, Solve, Status, Stop, forecast_solve
from deqlm_solvers.loop.derivative import NoDerivativeError
from solvers.classics import CLASSICS, F64, generalised_rosenbrock
from solvers.fallback_cases import affine

STOP = Stop(max_iter=300, rtol=1e-8, atol=1e-8)
VALLEY = pytest.param(generalised_rosenbrock(10), marks=pytest.mark.slow)


class Opaque(torch.autograd.Function):
    """-3 z + 1, which autograd cannot differentiate."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        return -3 * z + 1


def left_out(sol) -> dict[str, str]:
    """Return the reason by name of every member that could not run."""
    parts = (choice.partition(" (left out: ") for choice in sol.choices)
    return {name: reason.rstrip(")") for name, _, reason in parts if reason}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("system", [*CLASSICS, generalised_rosenbrock(6), VALLEY], ids=lambda s: s.name)
def test_the_default_chain_solves_the_classics(system, mirrored):
    f = Counted(system.mirrored if mirrored else system.map)
    sol = Solve(Fallback(), STOP.replace(max_iter=100 * max(3, system.z0.shape[1])))(f, system.z0)
    assert sol.converged.all(), sol.summary()
    assert not left_out(sol)
    assert sol.cost.evaluations == f.calls


def test_rows_that_the_first_member_solves_pay_nothing_more():
    gain = torch.tensor([[0.5], [-3.0]], dtype=F64)
    sol, first = (Solve(s, STOP)(affine(gain), torch.zeros(2, 3, dtype=F64)) for s in (Fallback(), Anderson()))
    assert_same_rows(sol, slice(None), first, slice(None))
    assert sol.cost == first.cost


def test_members_that_cannot_differentiate_f_are_left_out():
    """Anderson is given too few evaluations, so that all others get their turn."""
    f = Counted(lambda z: torch.where(z < 5, Opaque.apply(z), z + 1))
    sol = Solve(Fallback(), Stop(max_iter=6, rtol=1e-12))(f, torch.full((2, 3), 9.0, dtype=F64))
    told = left_out(sol)
    assert set(told) == {"newton_krylov", "newton", "dogleg"}
    assert set(told.values()) == {"autograd cannot differentiate f"}
    assert sol.cost.evaluations == f.calls, "calls before an error are paid for too"
    assert sol.cost.row_evaluations == f.rows


def test_a_row_is_solved_by_a_member_behind_one_that_is_left_out():
    sol = Solve(Fallback("newton", "newton_krylov", "anderson"), STOP)(Opaque.apply, torch.zeros(2, 3, dtype=F64))
    assert sol.converged.all()
    assert sol.picked.tolist() == [2, 2]
    assert list(left_out(sol)) == ["newton", "newton_krylov"]
    assert sol.choices[2] == "anderson"
    assert "picked: 2 anderson" in sol.summary()


def test_where_no_member_can_run_the_reason_is_raised():
    z0 = torch.zeros(2, 3, dtype=F64)
    with pytest.raises(NoDerivativeError, match="needs the Jacobian of f"):
        Solve(Fallback("newton", "newton_krylov"), STOP)(Opaque.apply, z0)
    with pytest.raises(ValueError, match=r"no member of fallback can run: newton \(left out: max_iter=3 cannot pay"):
        Solve(Fallback("newton", "dogleg"), Stop(max_iter=3))(affine(torch.ones(2, 1)), z0)
    with pytest.raises(ValueError, match="max_iter must be >= 5"):
        Solve(Fallback("newton"), Stop(max_iter=3))(affine(torch.ones(2, 1)), z0)


def test_a_budget_too_small_for_a_dense_step_leaves_it_out():
    f = affine(torch.full((1, 1), torch.nan, dtype=F64))
    z0 = torch.zeros(1, 12, dtype=F64)
    for max_iter, expected in ((13, {"newton", "dogleg"}), (14, set())):
        sol = Solve(Fallback(), Stop(max_iter=max_iter))(f, z0)
        assert set(left_out(sol)) == expected
        assert sol.status.item() == Status.NONFINITE
    assert "max_iter=13 cannot pay a step, which takes 14" in Solve(Fallback(), Stop(max_iter=13))(f, z0).choices[4]


@pytest.mark.parametrize("chain", [Fallback(), Fallback(Anderson(memory=3), "newton")], ids=["default", "asked for"])
def test_dense_members_of_the_default_are_for_few_unknowns(chain):
    f = lambda z: torch.where(z.sum(1, keepdim=True).isfinite(), torch.nan, z)  # noqa: E731
    for unknowns in (128, 129):
        sol = Solve(chain, Stop(max_iter=400))(f, torch.zeros(1, unknowns))
        expected = {"newton", "dogleg"} if unknowns > 128 and chain == Fallback() else set()
        assert set(left_out(sol)) == expected


def test_rows_may_leave_at_once_where_the_default_needs_no_derivative():
    gain = torch.tensor([[0.5], [-3.0]], dtype=F64)
    at_once = Stop(max_iter=100, rtol=1e-8, compact="at_once")
    assert Solve(Fallback(), at_once)(affine(gain), torch.zeros(2, 3, dtype=F64)).converged.all()
    sol = Solve(Fallback(), at_once.replace(max_iter=14))(generalised_rosenbrock(10).map, generalised_rosenbrock(10).z0)
    assert set(left_out(sol)) == {"newton_krylov", "newton", "dogleg"}


def test_a_map_that_refuses_made_up_points_keeps_its_rows():
    """The probe moves failed rows to see whether others notice; f may check what it is given."""
    gain = torch.tensor([[0.5], [-1.0]], dtype=F64)

    def f(z: Tensor) -> Tensor:
        assert bool((z.abs() < 50).all()), "out of range"
        return gain * z

    chain = Fallback("fixed_point", FixedPoint(damping=0.5))
    sol = Solve(chain, Stop(max_iter=60, rtol=0, atol=1e-9))(f, torch.full((2, 3), 40.0, dtype=F64))
    assert sol.converged.all()


def test_what_dense_jacobians_hold_is_forecast():
    few, many = (forecast_solve(Solve(Fallback(), STOP), 8, n, F64).total for n in (100, 4096))
    assert few is not None
    assert few >= 8 * 100**2 * 39
    assert many is not None
    assert forecast_solve(Solve(Fallback("anderson", "newton"), STOP), 8, 100, F64).total is None


def test_the_name_of_the_members_goes_with_the_solution_of_deqlm():
    sol = deqlm.solve(
        Opaque.apply,
        torch.zeros(2, 3, dtype=F64),
        solver=Fallback(Newton(), NewtonKrylov(), "broyden"),
        stop=STOP,
        gradient="one_step",
    )
    assert sol.converged.all()
    assert sol.choices[2] == "broyden"
