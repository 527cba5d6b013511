"""Broyden's methods against their dense updates, past the wrap of the ring, and with a line search."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import exact_rows, linear, normal, tanh_layer
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import Broyden, Solve, Stop

UPDATES = ["good", "bad"]


def dense(f, z: Tensor, update: str, damping: float, steps: int, memory: int) -> list[Tensor]:
    """Return the points of Broyden's method on one vector, rebuilt each step from the last ``memory`` pairs."""
    N = len(z)
    eye = torch.eye(N, dtype=z.dtype)
    points: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    r = f(z) - z
    for _ in range(steps):
        points.append(z)
        B, H = -eye / damping, -damping * eye
        for s, y in pairs[-memory:]:
            B = B + torch.outer(y - B @ s, s) / (s @ s)
            H = H + torch.outer(s - H @ y, y) / (y @ y)
        step = -torch.linalg.solve(B, r) if update == "good" else -H @ r
        z_next = z + step
        r_next = f(z_next) - z_next
        pairs.append((z_next - z, r_next - r))
        z, r = z_next, r_next
    return points


def assert_follows(problem, solver: Broyden, steps: int, memory: int) -> None:
    rows = len(problem.truth)
    f = Counted(problem.f)
    Solve(solver, Stop(max_iter=steps, rtol=0))(f, problem.z0())
    for i in range(rows):
        alone = lambda z, i=i: problem.f(z.expand(rows, -1))[i]  # noqa: E731
        want = dense(alone, problem.z0()[i], solver.update, solver.damping, steps, memory)
        for k in range(steps):
            scale = (want[k] - problem.truth[i]).norm() + 1e-8
            assert (f.points[k][i] - want[k]).norm() <= 1e-6 * scale, f"row {i}, point {k}"


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_it_is_the_dense_update_while_nothing_is_forgotten(update, damping):
    for problem in (linear("non_normal", 0.7, B=3), tanh_layer(0.9, B=3)):
        assert_follows(problem, Broyden(memory=20, update=update, damping=damping), steps=12, memory=20)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("memory", [1, 2, 5])
def test_past_the_wrap_it_is_the_dense_update_of_the_kept_pairs(update, memory):
    """torchdeq overwrites rank-one terms that later ones depend on, and diverges."""
    for problem in (linear("symmetric", 0.6, B=3), tanh_layer(0.8, B=3)):
        assert_follows(problem, Broyden(memory=memory, update=update), steps=4 * memory + 6, memory=memory)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("memory", [2, 4, 8])
def test_long_runs_past_the_wrap_converge(update, memory):
    for problem in (linear("symmetric", 0.9, N=40), linear("non_normal", 0.5, N=30), tanh_layer(0.9, N=40)):
        sol = Solve(Broyden(memory=memory, update=update), Stop(max_iter=600, rtol=1e-10))(problem.f, problem.z0())
        assert sol.converged.all(), f"{problem.name}: {sol.summary()}"
        assert sol.steps.max() > memory + 2
        assert ((sol.z - problem.truth).norm(dim=1) <= 2 * problem.kappa * problem.tolerance(1e-10)).all()


@pytest.mark.parametrize("update", UPDATES)
def test_a_tight_tolerance_past_the_wrap_stays_finite(update):
    """Where torchdeq's ring ends in inf or NaN: hundreds of steps with four pairs."""
    problem = linear("symmetric", 0.99, N=60)
    sol = Solve(Broyden(memory=4, update=update), Stop(max_iter=400, rtol=1e-13))(problem.f, problem.z0())
    assert sol.z.isfinite().all()
    assert (sol.residual <= (problem.f(problem.z0())).norm(dim=1)).all()


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("gain", [-1.6, -3.0, 2.0])
def test_maps_that_expand(update, gain):
    b = normal(0, 4, 6)
    sol = Solve(Broyden(update=update), Stop(max_iter=100, rtol=1e-6))(lambda z: gain * z + b, torch.zeros_like(b))
    assert sol.converged.all(), sol.summary()
    assert torch.allclose(sol.z, b / (1 - gain), rtol=1e-4)


@pytest.mark.parametrize("update", UPDATES)
def test_more_memory_than_unknowns(update):
    for N in (1, 2, 3):
        problem = linear("symmetric", 0.9, B=3, N=N)
        for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
            sol = Solve(Broyden(memory=12, update=update), Stop(max_iter=60, rtol=rtol))(problem.f, problem.z0(dtype))
            assert sol.converged.all(), f"N={N}, {dtype}: {sol}"


@pytest.mark.parametrize("solver", [Broyden(update=u, line_search=ls) for u in UPDATES for ls in (None, "armijo")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denominators_are_guarded_per_row(solver, dtype):
    b, gain = normal(1, 4, 8), torch.full((4, 1), 0.9, dtype=torch.float64)
    plain = exact_rows(b, gain)
    rows = {
        "no change of the residual": lambda z, fz: z + 1,
        "no change of the point": lambda z, fz: z,
        "constant map": lambda z, fz: torch.ones_like(z),
        "huge": lambda z, fz: fz * 1e35,
        "NaN": lambda z, fz: fz * torch.nan,
    }
    stop = Stop(max_iter=80, rtol=1e-5)
    reference = Solve(solver, stop)(plain, torch.zeros(4, 8, dtype=dtype))
    assert reference.converged.all()
    for row in rows.values():

        def f(z: Tensor, row=row) -> Tensor:
            fz = plain(z)
            return torch.cat([row(z[:1], fz[:1]), fz[1:]])

        sol = Solve(solver, stop)(f, torch.zeros(4, 8, dtype=dtype))
        assert_same_rows(sol, slice(1, 4), reference, slice(1, 4))


def test_armijo_halves_the_step_of_the_row_that_needs_it():
    """f = -3 z + 4 from 0: the full step to 4 and the half one to 2 do not reduce |r|, the quarter to 1 does."""
    gain = torch.tensor([[-3.0], [0.5], [0.5]], dtype=torch.float64)
    b = torch.tensor([[4.0], [1.0], [-7.0]], dtype=torch.float64)
    f = Counted(lambda z: gain * z + b)
    sol = Solve(Broyden(line_search="armijo"), Stop(rtol=1e-10))(f, torch.zeros(3, 1, dtype=torch.float64))
    assert sol.converged.all()
    assert [z[0].item() for z in f.points[:4]] == [0, 4, 2, 1]
    assert [z[1].item() for z in f.points[:3]] == [0, 1, 2], "a full step and a secant step, unhindered"
    assert [z[2].item() for z in f.points[:3]] == [0, -7, -14]
    assert sol.steps.tolist() == [4, 3, 3]


def test_armijo_halves_at_most_four_times():
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return z + (1.0 if calls == 1 else 1.5)

    seen = Counted(f)
    Solve(Broyden(line_search="armijo"), Stop(max_iter=6, rtol=1e-12))(seen, torch.zeros(1, 1, dtype=torch.float64))
    assert [z.item() for z in seen.points[1:6]] == [1, 0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize("update", UPDATES)
def test_armijo_counts_every_trial_as_an_evaluation(update):
    for problem in (linear("symmetric", 1.3, N=6), tanh_layer(3.0), linear("symmetric", 0.9)):
        for max_iter in (3, 10, 60):
            f = Counted(problem.f)
            sol = Solve(Broyden(update=update, line_search="armijo"), Stop(max_iter=max_iter))(f, problem.z0())
            assert f.calls == sol.cost.evaluations <= max_iter + 1, "one look at all answers may come on top"
            assert sol.steps.max() <= f.calls


@pytest.mark.parametrize("update", UPDATES)
def test_armijo_solves_contractions(update):
    for problem in (linear("symmetric", 0.9), linear("non_normal", 0.5), tanh_layer(0.9)):
        solver = Broyden(update=update, line_search="armijo")
        sol = Solve(solver, Stop(max_iter=300, rtol=1e-8))(problem.f, problem.z0())
        assert sol.converged.all(), f"{problem.name}: {sol.summary()}"


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("line_search", [None, "armijo"])
def test_a_row_does_not_see_its_neighbours(update, line_search):
    """torchdeq's line search has one step length for the batch."""
    b, gain = normal(1, 4, 6), torch.tensor([[0.9], [-2.0], [0.5], [-4.0]], dtype=torch.float64)
    solver = Broyden(update=update, line_search=line_search)
    stop = Stop(max_iter=60, rtol=1e-8)
    plain = Solve(solver, stop)(exact_rows(b, gain), torch.zeros_like(b))
    for change in (0.0, 7.0, torch.nan):
        other_b, other_gain = b.clone(), gain.clone()
        other_b[[0, 2]], other_gain[[0, 2]] = change, -9.0
        changed = Solve(solver, stop)(exact_rows(other_b, other_gain), torch.zeros_like(b))
        assert_same_rows(plain, [1, 3], changed, [1, 3])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory", 0),
        ("memory", 1.5),
        ("update", "ugly"),
        ("damping", 0.0),
        ("damping", 2.0),
        ("line_search", "wolfe"),
        ("line_search", True),
    ],
)
def test_options_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be "):
        Broyden(**{field: value})
