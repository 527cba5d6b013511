"""Unusual inputs: each is solved or refused with a message that says what is wrong."""

from __future__ import annotations

import pytest
import torch

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import linear, tanh_layer
from deqlm.testing.solvers.rows import same_bits
from deqlm_solvers import Anderson, Broyden, FixedPoint, Solve, Status, Stop
from solvers.each import (
    UNSHORTENED,
    each,
    each_plain,
    each_that_begins_plainly,
    each_that_solves,
    each_that_solves_plainly,
)


@each
def test_no_rows(name):
    sol = Solve(name)(lambda z: 0.5 * z + 1, torch.zeros(0, 3))
    assert sol.z.shape == (0, 3)
    assert sol.residual.shape == sol.steps.shape == sol.status.shape == (0,)
    assert sol.cost.row_evaluations == 0
    sol.raise_if_failed()
    assert "no rows" in sol.summary()


@each_plain
def test_no_rows_under_a_budget_and_on_the_predicted_schedule(name):
    for stop in (Stop(max_iter=3, rtol=0), Stop(test_every="auto"), Stop(patience=2)):
        assert Solve(name, stop)(lambda z: 0.5 * z + 1, torch.zeros(0, 3)).z.shape == (0, 3)


@each
def test_no_unknowns(name):
    for stop in (Stop(), Stop(norm="rms"), Stop(test_every="auto")):
        sol = Solve(name, stop)(lambda z: 0.5 * z + 1, torch.zeros(4, 0))
        assert sol.z.shape == (4, 0)
        assert sol.converged.all()
        assert (sol.residual == 0).all()
        assert (sol.steps == 1).all()


@each
def test_one_unknown(name):
    sol = Solve(name, Stop(rtol=1e-12, max_iter=200))(torch.cos, torch.zeros(3, 1, dtype=torch.float64))
    assert sol.converged.all()
    assert torch.allclose(sol.z, torch.full((3, 1), 0.7390851332151607, dtype=torch.float64), rtol=1e-11)


@each_that_solves
def test_a_start_that_is_not_contiguous_is_solved_and_not_written_to(name):
    problem = linear("symmetric", 0.8)
    wide = torch.zeros(problem.truth.shape[::-1], dtype=torch.float64)
    strided = wide.T
    assert not strided.is_contiguous()
    plain = Solve(name, Stop(rtol=1e-8, max_iter=200))(problem.f, problem.z0())
    sol = Solve(name, Stop(rtol=1e-8, max_iter=200))(problem.f, strided)
    assert sol.converged.all()
    assert torch.allclose(sol.z, plain.z, rtol=1e-6)
    assert (wide == 0).all()


@each_that_solves
def test_a_map_whose_result_is_not_contiguous(name):
    problem = linear("symmetric", 0.8)
    sol = Solve(name, Stop(rtol=1e-8, max_iter=200))(lambda z: problem.f(z).T.contiguous().T, problem.z0())
    assert sol.converged.all()


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)], ids=str)
def test_solvers_take_rows_only(shape):
    with pytest.raises(ValueError, match=r"z0 must be of shape \(B, N\), rows by unknowns, got"):
        Solve("anderson")(torch.cos, torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_solvers_take_floating_point_only(dtype):
    with pytest.raises(ValueError, match=r"z0 must be floating point .*, got torch\."):
        Solve("anderson")(lambda z: z, torch.zeros(2, 3).to(dtype))


def test_a_start_that_is_no_tensor():
    with pytest.raises(TypeError, match="z0 must be a tensor, got list"):
        Solve("anderson")(torch.cos, [[0.0]])  # type: ignore[arg-type]


@each
@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda z: z[:, :1], r"the shape of f\(z\) must be that of z, \(2, 3\), got \(2, 1\)"),
        (lambda z: z[0], r"the shape of f\(z\) must be that of z, \(2, 3\), got \(3,\)"),
        (lambda z: z.double(), r"the dtype of f\(z\) must be that of z, torch.float32, got torch.float64"),
        (lambda z: z.to("meta"), r"the device of f\(z\) must be that of z, cpu, got device\(type='meta'\)"),
        (lambda z: z.mul_(0.5), r"f wrote into its argument in place; return a new tensor"),
        (lambda z: z.clamp_(-1, 1) + 1, r"f wrote into its argument in place"),
    ],
    ids=["shape", "broadcast", "dtype", "device", "in place", "in place before"],
)
def test_maps_that_break_the_contract(name, f, message):
    z0 = torch.ones(2, 3)
    with pytest.raises(ValueError, match=message):
        Solve(name)(f, z0)
    assert (z0 == 1).all(), "the caller's start was written to"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_work_in_place_is_found_in_half_precision(dtype):
    with pytest.raises(ValueError, match="in place"):
        Solve("anderson", Stop(rtol=0.1))(lambda z: z.mul_(0.5), torch.ones(2, 3, dtype=dtype))


def test_a_map_that_returns_no_tensor():
    with pytest.raises(TypeError, match="f must return a tensor, got tuple"):
        Solve("anderson")(lambda z: (z, z), torch.zeros(2, 3))  # type: ignore[arg-type,return-value]


@each_plain
def test_an_error_in_f_reaches_the_caller(name):
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyError("mine")
        return 0.5 * z + 1

    with pytest.raises(KeyError, match="mine"):
        Solve(name)(f, torch.zeros(2, 3))
    assert torch.is_grad_enabled()


@each
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_not_finite_from_the_start(name, bad):
    f = Counted(lambda z: torch.full_like(z, bad))
    sol = Solve(name)(f, torch.ones(2, 3))
    assert (sol.status == Status.NONFINITE).all()
    assert f.calls == 1, "rows that are lost need no further evaluation"
    assert (sol.z == 1).all(), "the start is the last finite point"
    assert sol.residual.isinf().all()


@each
def test_a_start_that_is_not_finite(name):
    z0 = torch.zeros(2, 3)
    z0[1] = torch.nan
    sol = Solve(name)(lambda z: 0.5 * z + 1, z0)
    assert sol.status.tolist() == [Status.CONVERGED, Status.NONFINITE]
    assert torch.allclose(sol.z[0], torch.tensor(2.0), rtol=1e-3)


@each
def test_a_start_that_is_already_the_solution_costs_one_evaluation(name):
    problem = tanh_layer(0.9)
    f = Counted(problem.f)
    sol = Solve(name)(f, problem.truth)
    assert f.calls == sol.cost.evaluations == 1
    assert (sol.steps == 1).all()
    assert sol.converged.all()
    assert same_bits(sol.z, problem.truth)


@each_that_begins_plainly
def test_a_solution_at_zero_reached_exactly(name):
    sol = Solve(name)(lambda z: torch.where(z.abs() < 0.1, 0.0, 0.5 * z), torch.ones(2, 3))
    assert sol.converged.all()
    assert (sol.z == 0).all()
    assert (sol.residual == 0).all()


@each
def test_a_solution_at_zero_with_an_absolute_tolerance(name):
    sol = Solve(name, Stop(rtol=0, atol=1e-6))(lambda z: 0.5 * z, torch.ones(2, 3))
    assert sol.converged.all()
    assert (sol.residual <= 1e-6).all()


@each_that_begins_plainly
def test_the_zero_map_and_the_identity(name):
    zero = Solve(name)(torch.zeros_like, torch.ones(2, 3))
    assert zero.converged.all()
    assert (zero.z == 0).all()
    assert (zero.steps == 2).all()
    same = Solve(name)(torch.clone, torch.ones(2, 3))
    assert same.converged.all()
    assert (same.steps == 1).all()
    assert (same.z == 1).all()


@each
def test_the_identity_that_returns_its_argument(name):
    sol = Solve(name)(lambda z: z, torch.ones(2, 3))
    assert sol.converged.all()


@each
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-8), (torch.float64, 1e-17), (torch.bfloat16, 1e-3)])
def test_a_tolerance_below_what_the_dtype_resolves_warns(name, dtype, rtol):
    with pytest.warns(UserWarning, match=f"rtol={rtol:g} is below what {str(dtype)[6:]} resolves"):
        Solve(name, Stop(max_iter=20, rtol=rtol))(lambda z: 0.5 * z + 1, torch.zeros(2, 3, dtype=dtype))


def test_a_tolerance_below_the_floor_is_no_matter_with_an_absolute_one():
    Solve("fixed_point", Stop(rtol=1e-9, atol=1e-4))(lambda z: 0.5 * z + 1, torch.zeros(2, 3))


@each_plain
def test_one_evaluation_returns_the_start_with_its_own_residual(name):
    problem = linear("symmetric", 0.9)
    z0 = problem.truth + 1
    sol = Solve(name, Stop(max_iter=1))(problem.f, z0)
    assert same_bits(sol.z, z0)
    assert torch.allclose(sol.residual, (problem.f(z0) - z0).norm(dim=1), rtol=1e-12)
    assert (sol.status == Status.MAX_ITER).all()
    assert sol.cost.evaluations == 1


@each_that_begins_plainly
def test_two_evaluations_make_one_picard_step(name):
    problem = linear("symmetric", 0.5)
    f = Counted(problem.f)
    Solve(name, Stop(max_iter=2))(f, problem.z0())
    assert torch.allclose(f.points[1], problem.f(problem.z0()), rtol=1e-12)


@each_that_solves_plainly
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("call", [2, 5])
def test_the_best_point_survives_what_is_not_finite_later(name, bad, call):
    problem = linear("symmetric", 0.9)
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        return problem.f(z) if calls < call else torch.full_like(z, bad)

    sol = Solve(name, Stop(max_iter=50, rtol=1e-10))(f, problem.z0())
    assert (sol.status == Status.NONFINITE).all()
    assert sol.z.isfinite().all()
    assert torch.allclose(sol.residual, (problem.f(sol.z) - sol.z).norm(dim=1), rtol=1e-12)
    if name in UNSHORTENED:
        assert (sol.steps == call).all()
    else:  # shorter steps from the best point are tried first
        assert ((sol.steps > call) & (sol.steps < call + 16)).all()
    reference = Solve(name, Stop(max_iter=call - 1, rtol=1e-10))(problem.f, problem.z0())
    torch.testing.assert_close(sol.z, reference.z, rtol=1e-13, atol=1e-14)


@each_that_solves_plainly
def test_a_later_nan_does_not_revoke_convergence(name):
    """The first row passes at once; then f breaks for good while the second row goes on."""
    problem = linear("symmetric", 0.9, B=2)
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        fz = torch.cat([torch.ones_like(z[:1]), problem.f(z)[1:]])
        return fz if calls < 4 else fz * torch.nan

    sol = Solve(name)(f, torch.ones_like(problem.truth))
    assert sol.status.tolist() == [Status.CONVERGED, Status.NONFINITE]
    assert (sol.z[0] == 1).all()
    first, other = sol.steps.tolist()
    assert first == 1
    assert other == 4 if name in UNSHORTENED else 4 < other < 20


@each_plain
def test_a_map_that_returns_the_same_buffer_every_time(name):
    problem = linear("symmetric", 0.8)
    buffer = problem.z0()

    def f(z):
        torch.add(problem.f(z), 0, out=buffer)
        return buffer

    for stop in (Stop(rtol=1e-8), Stop(max_iter=7, rtol=0)):
        sol, plain = Solve(name, stop)(f, problem.z0()), Solve(name, stop)(problem.f, problem.z0())
        assert same_bits(sol.z, plain.z)
        assert same_bits(sol.residual, plain.residual)
        assert same_bits(sol.status, plain.status)


@each_plain
def test_a_buffer_that_is_overwritten_after_the_solve(name):
    problem = linear("symmetric", 0.5)
    buffer = problem.z0()
    for stop in (Stop(), Stop(max_iter=3, rtol=0)):
        sol = Solve(name, stop)(lambda z: buffer.copy_(problem.f(z)), problem.z0())
        kept = sol.z.clone()
        buffer.fill_(torch.nan)
        assert same_bits(sol.z, kept)


def test_best_f_with_the_same_buffer_every_time():
    problem = linear("symmetric", 0.5)
    buffer = problem.z0()
    stop = Stop(rtol=1e-6, keep="best_f")
    sol = Solve("fixed_point", stop)(lambda z: buffer.copy_(problem.f(z)), problem.z0())
    plain = Solve("fixed_point", stop)(problem.f, problem.z0())
    kept = sol.z.clone()
    buffer.fill_(torch.nan)
    assert same_bits(sol.z, kept)
    assert same_bits(kept, plain.z)


@each_plain
def test_the_start_is_never_written_to_nor_returned(name):
    problem = linear("symmetric", 0.5)
    for dtype in (torch.float64, torch.bfloat16):
        z0 = problem.z0(dtype)
        sol = Solve(name, Stop(max_iter=1, rtol=0.1))(problem.f, z0)
        sol.z.add_(1)
        assert (z0 == 0).all()


@each
def test_a_start_that_requires_grad(name):
    z0 = torch.zeros(2, 3, requires_grad=True)
    sol = Solve(name)(lambda z: 0.5 * z + 1, z0)
    assert not sol.z.requires_grad
    assert z0.grad is None


@each
def test_huge_and_tiny_numbers(name):
    for size in (1e30, 1e-30):
        sol = Solve(name, Stop(rtol=1e-5))(lambda z, size=size: 0.5 * z + size, torch.zeros(2, 3))
        assert sol.converged.all(), f"{size}: {sol}"
        assert torch.allclose(sol.z / size, torch.tensor(2.0), rtol=1e-4)


@pytest.mark.parametrize(
    "solver", [Anderson(memory=1), Anderson(memory=40), Broyden(memory=1), FixedPoint(damping=0.5)]
)
def test_options_at_their_ends_take_small_states(solver):
    for B, N in ((1, 1), (3, 2)):
        sol = Solve(solver, Stop(rtol=1e-6))(lambda z: 0.3 * z + 1, torch.zeros(B, N, dtype=torch.float64))
        assert sol.converged.all()


@each_plain
@pytest.mark.parametrize("stop", [Stop(), Stop(max_iter=5, rtol=0)], ids=["tested", "budget"])
def test_a_map_that_builds_graphs_of_its_own(name, stop):
    """An f with enable_grad inside (the gradient of an energy, say) gets points without a graph and leaves none."""
    weight = torch.tensor(0.5, requires_grad=True)
    with_graph = []

    def f(z):
        with_graph.append(z.requires_grad)
        with torch.enable_grad():
            return weight * z + 1

    sol = Solve(name, stop)(f, torch.zeros(2, 3))
    assert not any(with_graph), "the graph grows with every evaluation"
    assert not sol.z.requires_grad
    assert not sol.residual.requires_grad


@each_plain
def test_a_map_that_marks_its_argument(name):
    """z.requires_grad_() inside f is how many energies are written."""

    def f(z):
        with torch.enable_grad():
            z.requires_grad_()
            energy = (0.25 * z**2 - z).sum()
            return z - torch.autograd.grad(energy, z)[0]

    z0 = torch.zeros(2, 3)
    for stop in (Stop(), Stop(max_iter=20, rtol=0)):
        sol = Solve(name, stop)(f, z0)
        assert torch.allclose(sol.z, torch.tensor(2.0), rtol=1e-3)
        assert not sol.z.requires_grad
        assert not z0.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rule_sees_states_of_16_bits_in_float32(dtype: torch.dtype):
    seen = set()

    class Watching(FixedPoint):
        def step(self, f, at, state):
            seen.add((at.z.dtype, at.fz.dtype, at.r.dtype))
            return super().step(f, at, state)

    sol = Solve(Watching(), Stop(max_iter=5, rtol=1e-2))(lambda z: 0.5 * z + 1, torch.zeros(2, 3, dtype=dtype))
    assert seen == {(torch.float32,) * 3}
    assert sol.z.dtype == dtype
