"""Stop: what it refuses, and what it ends on and keeps."""

from __future__ import annotations

import math

import pytest
import torch

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import linear
from deqlm.testing.solvers.rows import assert_same_rows, same_bits
from deqlm_solvers import FixedPoint, Layout, Solve, Status, Stop


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_iter", -1),
        ("max_iter", 1.5),
        ("max_iter", True),
        ("rtol", -1e-3),
        ("rtol", math.nan),
        ("rtol", math.inf),
        ("rtol", "1e-3"),
        ("atol", -1.0),
        ("atol", math.inf),
        ("norm", "l1"),
        ("norm", ()),
        ("norm", (1.0, -1.0)),
        ("norm", (math.nan,)),
        ("per", "sequence"),
        ("token_dim", -1),
        ("keep", "last"),
        ("test_every", 0),
        ("test_every", "always"),
        ("check_every", -1),
        ("check_every", 1.0),
        ("trace", 1),
        ("patience", 0),
        ("divergence", 1.0),
        ("divergence", 0),
        ("divergence", math.nan),
    ],
)
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be "):
        Stop(**{field: value})


def test_unknown_fields_are_refused_with_the_nearest():
    with pytest.raises(TypeError, match="Stop got an unknown option 'max_iters': did you mean 'max_iter'"):
        Stop(max_iters=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Stop(100)  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [
        {"rtol": 0, "keep": "best_f"},
        {"rtol": 0, "test_every": 2},
        {"rtol": 0, "test_every": "auto"},
        {"rtol": 0, "check_every": 4},
        {"rtol": 0, "patience": 4},
        {"rtol": 0, "divergence": 10.0},
        {"keep": "best_f", "atol": 1e-3},
        {"keep": "best_f", "per": "token"},
        {"keep": "best_f", "patience": 3},
        {"keep": "best_f", "test_every": 2},
        {"test_every": "auto", "check_every": 2},
        {"token_dim": 2},
        {"token_dim": 2, "per": "leaf"},
    ],
    ids=str,
)
def test_settings_that_would_be_ignored_are_refused(fields):
    with pytest.raises(ValueError, match="is not used"):
        Stop(**fields)


def test_budget_is_both_tolerances_zero():
    assert Stop(rtol=0).is_budget
    assert Stop(rtol=0.0, atol=0.0).is_budget
    assert not Stop(rtol=0, atol=1e-3).is_budget
    assert not Stop().is_budget


def test_the_defaults_are_those_of_the_design():
    stop = Stop()
    assert (stop.max_iter, stop.rtol, stop.atol, stop.per) == (100, 1e-4, 0.0, "row")
    assert (stop.test_every, stop.check_every, stop.patience, stop.trace) == (1, 1, None, False)
    assert stop.divergence == 1e8


@pytest.mark.parametrize(("rtol", "atol"), [(1e-3, 0.0), (0.0, 1e-3), (1e-3, 1e-2)])
def test_the_first_point_that_passes_is_returned(rtol, atol):
    problem = linear("symmetric", 0.9)
    f = Counted(problem.f)
    sol = Solve(FixedPoint(), Stop(max_iter=400, rtol=rtol, atol=atol))(f, problem.z0())
    for i in range(len(sol.z)):
        for k, z in enumerate(f.points, start=1):
            fz = problem.f(z)
            if (fz - z)[i].norm() <= atol + rtol * fz[i].norm():
                assert sol.steps[i] == k
                assert same_bits(sol.z[i], z[i])
                break
        else:
            pytest.fail("no point passes")
    assert f.calls == sol.steps.max()


def test_the_residual_tested_is_that_of_the_map_not_of_the_damped_step():
    """torchdeq's defect 9: tol loosened by 1/damping."""
    problem = linear("symmetric", 0.5)
    sol = Solve(FixedPoint(damping=0.1), Stop(max_iter=500, rtol=1e-4))(problem.f, problem.z0())
    fz = problem.f(sol.z)
    assert sol.converged.all()
    assert ((fz - sol.z).norm(dim=1) <= 1e-4 * fz.norm(dim=1) * (1 + 1e-9)).all()
    assert torch.allclose(sol.residual, (fz - sol.z).norm(dim=1), rtol=1e-12)


def test_otherwise_the_best_point_is_returned():
    problem = linear("non_normal", 0.95, N=20)
    f = Counted(problem.f)
    sol = Solve(FixedPoint(), Stop(max_iter=25, rtol=1e-12))(f, problem.z0())
    images = [problem.f(z) for z in f.points]
    ratios = torch.stack([(fz - z).norm(dim=1) / fz.norm(dim=1) for z, fz in zip(f.points, images, strict=True)])
    best = ratios.argmin(0)
    for i, k in enumerate(best.tolist()):
        assert same_bits(sol.z[i], f.points[k][i])
        assert sol.relative[i] == pytest.approx(ratios[k, i].item(), rel=1e-12)


def test_residual_and_relative_are_of_the_same_point():
    problem = linear("symmetric", 0.9)
    for max_iter in (3, 50, 500):
        sol = Solve(FixedPoint(), Stop(max_iter=max_iter, rtol=1e-6))(problem.f, problem.z0())
        assert torch.allclose(sol.residual / problem.f(sol.z).norm(dim=1), sol.relative, rtol=1e-12)


def test_trace_has_one_row_per_evaluation_and_holds_after_a_row_is_done():
    problem = linear("symmetric", 0.9)
    f = Counted(problem.f)
    sol = Solve(FixedPoint(), Stop(max_iter=300, rtol=1e-4, trace=True))(f, problem.z0())
    assert sol.trace is not None
    assert sol.trace.shape == (f.calls, 4)
    for k, z in enumerate(f.points):
        assert torch.allclose(sol.trace[k], (problem.f(z) - z).norm(dim=1), rtol=1e-12)
    for i, steps in enumerate(sol.steps.tolist()):
        assert (sol.trace[steps - 1 :, i] == sol.residual[i]).all()
    assert Solve(FixedPoint())(problem.f, problem.z0()).trace is None


def test_trace_of_a_budget():
    problem = linear("symmetric", 1.2)
    f = Counted(problem.f)
    sol = Solve(FixedPoint(), Stop(max_iter=6, rtol=0, trace=True))(f, problem.z0())
    assert sol.trace is not None
    assert sol.trace.shape == (6, 4)
    assert same_bits(sol.trace[-1], sol.residual)


def test_a_long_budget_takes_every_step_after_it_has_settled():
    """Nothing is tested, so nothing is frozen: z_K is the K-th iterate even at the fixed point."""
    f = Counted(lambda z: 0.5 * z + 1)
    sol = Solve(FixedPoint(), Stop(max_iter=100, rtol=0))(f, torch.zeros(2, 1, dtype=torch.float64))
    assert f.calls == 100
    assert (sol.z == 2).all()
    assert (sol.status == Status.BUDGET).all()


def test_absolute_and_relative_tolerance_add_up():
    f = lambda z: 0.5 * z + 1  # noqa: E731
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    sums = Solve(FixedPoint(), Stop(rtol=0.01, atol=0.01))(f, z0)
    assert sums.residual.item() <= 0.01 + 0.01 * f(sums.z).abs().item()
    before = 2 * sums.residual.item()
    assert before > 0.01 + 0.01 * 2


def test_scale_takes_the_place_of_a_small_image():
    """||f(z) - z|| <= rtol * max(||f(z)||, s): a vanishing map passes by its scale."""
    layout = Layout(scale=torch.tensor([1.0, 100.0], dtype=torch.float64))
    sol = Solve(FixedPoint(), Stop(rtol=1e-3))(lambda z: 0.5 * z, torch.ones(2, 1, dtype=torch.float64), layout)
    assert sol.converged.all()
    assert sol.residual[0] <= 1e-3 < 2 * sol.residual[0]
    assert sol.residual[1] <= 1e-1 < 2 * sol.residual[1]
    plain = Solve(FixedPoint(), Stop(rtol=1e-3))(lambda z: 0.5 * z, torch.ones(2, 1, dtype=torch.float64))
    assert plain.failed.all()


def test_a_scale_of_zero_changes_nothing():
    problem = linear("symmetric", 0.9)
    plain = Solve(FixedPoint(), Stop(max_iter=300))(problem.f, problem.z0())
    zero = Solve(FixedPoint(), Stop(max_iter=300))(problem.f, problem.z0(), Layout(scale=torch.zeros(4)))
    assert_same_rows(plain, slice(None), zero, slice(None))


def test_a_solver_refuses_what_it_cannot_honour():
    class Short(FixedPoint):
        honours = frozenset({"max_iter", "rtol"})

    assert Solve(Short(), Stop(max_iter=3)).stop.max_iter == 3
    with pytest.raises(ValueError, match=r"cannot honour Stop\(patience=3\)"):
        Solve(Short(), Stop(patience=3))


def test_solve_takes_names_and_dicts():
    a = Solve("anderson", Stop(rtol=1e-3))
    b = Solve({"name": "anderson"}, {"rtol": 1e-3})  # type: ignore[arg-type]
    assert a == b
    assert Solve.from_dict(a.to_dict()) == a
    with pytest.raises(ValueError, match="stop must be a Stop"):
        Solve("anderson", 3)  # type: ignore[arg-type]
