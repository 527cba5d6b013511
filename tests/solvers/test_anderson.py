"""Anderson acceleration: its step against the dense one, its cost, and its safeguard."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deqlm.testing.solvers.counting import Counted, geometric
from deqlm.testing.solvers.problems import exact_rows, linear, normal, tanh_layer
from deqlm.testing.solvers.rows import assert_same_rows, same_bits
from deqlm_solvers import Anderson, FixedPoint, Solve, Stop
from deqlm_solvers.methods.damping import Damping
from deqlm_solvers.methods.secant import Secant


def dense(f, z: Tensor, memory: int, damping: float, steps: int) -> list[Tensor]:
    """Return the points of type II Anderson on one vector, by least squares over the last ``memory`` points."""
    points, residuals = [], []
    for _ in range(steps):
        r = f(z) - z
        points.append(z)
        residuals.append(r)
        Z, R = torch.stack(points[-memory:]), torch.stack(residuals[-memory:])
        S, Y = (Z[1:] - Z[:-1]).T, (R[1:] - R[:-1]).T
        z = z + damping * r
        if Y.shape[1]:
            gamma = torch.linalg.lstsq(Y, r[:, None], driver="gelsd").solution
            z = z - ((S + damping * Y) @ gamma)[:, 0]
    return points


@pytest.mark.parametrize(("memory", "damping"), [(2, 1.0), (4, 1.0), (4, 0.7), (20, 1.0)])
def test_its_points_are_those_of_dense_least_squares(memory, damping):
    """Ten steps past the wrap of the ring for the short memories."""
    problem = tanh_layer(0.9, B=3, N=16)
    f = Counted(problem.f)
    solver = Anderson(memory=memory, damping=damping, ridge=1e-14, plain_rate=0.0)
    Solve(solver, Stop(max_iter=14, rtol=0))(f, problem.z0())
    for i in range(3):
        alone = lambda z, i=i: problem.f(z.expand(3, -1))[i]  # noqa: E731
        want = dense(alone, problem.z0()[i], memory, damping, 14)
        for k in range(14):
            scale = (want[k] - problem.truth[i]).norm() + 1e-6
            assert (f.points[k][i] - want[k]).norm() <= 1e-4 * scale, f"row {i}, point {k}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("damping", [1.0, 0.8, 0.25])
def test_memory_one_is_damped_picard_bit_for_bit(dtype, damping):
    problem = linear("symmetric", 0.9)
    for stop in (Stop(max_iter=400, rtol=1e-6), Stop(max_iter=9, rtol=0), Stop(max_iter=30, rtol=1e-6)):
        picard = Solve(FixedPoint(damping=damping), stop)(problem.f, problem.z0(dtype))
        anderson = Solve(Anderson(memory=1, damping=damping), stop)(problem.f, problem.z0(dtype))
        assert_same_rows(picard, slice(None), anderson, slice(None))


def test_it_works_from_the_first_evaluation():
    """torchdeq's Anderson returns its start untouched from one or two evaluations."""
    problem = linear("symmetric", 0.9)
    f = Counted(problem.f)
    Solve(Anderson(), Stop(max_iter=3, rtol=0))(f, problem.z0())
    assert same_bits(f.points[1], problem.f(problem.z0()))
    picard = problem.f(problem.f(problem.z0()))
    assert (problem.f(f.points[2]) - f.points[2]).norm() < (problem.f(picard) - picard).norm()


def test_a_linear_map_of_few_unknowns_is_solved_in_as_many_steps():
    problem = linear("non_normal", 0.9, B=4, N=5)
    sol = Solve(Anderson(memory=8), Stop(max_iter=30, rtol=1e-10))(problem.f, problem.z0())
    assert sol.converged.all()
    assert sol.steps.max() <= 5 + 3


def test_it_needs_no_more_evaluations_than_plain_iteration():
    """torchdeq's default needs more in 24 of 24 problems, for its ridge is absolute."""
    for problem in (linear("symmetric", 0.9), linear("non_normal", 0.5), linear("rotation", 0.8), tanh_layer(0.9)):
        stop = Stop(max_iter=500, rtol=1e-6)
        picard = Solve(FixedPoint(), stop)(problem.f, problem.z0())
        anderson = Solve(Anderson(), stop)(problem.f, problem.z0())
        assert anderson.converged.all()
        assert (anderson.steps <= picard.steps).all(), problem.name


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_size_of_the_state_does_not_matter(size):
    """Its ridge is relative: a state in other units takes the same steps."""
    problem = linear("symmetric", 0.9)
    stop = Stop(max_iter=100, rtol=1e-8)
    plain = Solve(Anderson(), stop)(problem.f, problem.z0())
    scaled = Solve(Anderson(), stop)(lambda z: size * problem.f(z / size), problem.z0())
    assert scaled.converged.all()
    assert (scaled.steps - plain.steps).abs().max() <= 1
    assert torch.allclose(scaled.z / size, plain.z, rtol=1e-6)


def test_one_new_row_of_products_per_step():
    """Twice the memory is twice the work on the history, not four times: y . y_new and y . r, never all of y . y."""

    class Work(TorchDispatchMode):
        """Numbers in the largest operand of each operation that reads a (B, M, N) history."""

        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            sizes = [a.numel() for a in args if isinstance(a, Tensor) and a.dim() == 3 and a.shape[-1] == 256]
            if func in (torch.ops.aten.mul.Tensor, torch.ops.aten.bmm.default) and sizes:
                self.numbers += max(sizes)
            return func(*args, **(kwargs or {}))

    def work(memory: int, evaluations: int) -> int:
        frames = iter(geometric(0.98, 2, 256, evaluations))
        with Work() as counter:
            Solve(Anderson(memory=memory), Stop(max_iter=evaluations, rtol=0))(
                lambda z: next(frames), torch.zeros(2, 256)
            )
        return counter.numbers

    per_step = {memory: (work(memory, 60) - work(memory, 40)) / 20 for memory in (9, 17)}
    history = 2 * 8 * 256
    assert per_step[9] <= 4 * history, "y . y_new, y . r, and the mix of s and y"
    assert per_step[17] <= 2.1 * per_step[9]


def test_more_memory_than_unknowns():
    for N in (1, 2, 3):
        problem = linear("symmetric", 0.9, B=3, N=N)
        for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
            sol = Solve(Anderson(memory=12), Stop(max_iter=60, rtol=rtol))(problem.f, problem.z0(dtype))
            assert sol.converged.all(), f"N={N}, {dtype}: {sol}"


@pytest.mark.parametrize("gain", [-1.1, -1.6, -3.0, 1.5, 3.0])
def test_maps_that_expand(gain):
    b = normal(0, 4, 6)
    sol = Solve(Anderson(), Stop(max_iter=100, rtol=1e-6))(lambda z: gain * z + b, torch.zeros_like(b))
    assert sol.converged.all(), sol.summary()
    assert torch.allclose(sol.z, b / (1 - gain), rtol=1e-4)


def test_two_cycles_that_expand_in_a_bounded_layer():
    b = normal(0, 4, 6)
    sol = Solve(Anderson(), Stop(max_iter=100, rtol=1e-6))(lambda z: torch.tanh(-1.6 * z + b), torch.zeros_like(b))
    assert sol.converged.all()


@pytest.mark.parametrize("impl", ["torch", "auto"])
@pytest.mark.parametrize("scale", [10.0, 1e3, 1e6])
def test_the_first_pair_gives_the_scale_of_the_map(impl, scale):
    """F(z) = scale (A z + sin z - b), solved as z = z - F(z): beta is the scale of the pair, not the user's."""
    problem = linear("symmetric", 0.9, B=3, N=40)
    f = lambda z: z + scale * (problem.f(z) - z + 0.1 * torch.sin(z))  # noqa: E731
    sol = Solve(Anderson(impl=impl), Stop(max_iter=120, rtol=1e-8))(f, problem.z0())
    assert sol.converged.all(), sol.summary()


def test_maps_of_a_common_scale_keep_the_damping():
    """One eighth is the limit: a residual that changes less than eight times as much as the point."""
    for gain, kept in ((-6.0, True), (-8.0, False), (0.99, True), (5.0, True)):
        damping = Damping(1.0, torch.zeros(1, 1))
        damping.fit(torch.ones(1, 1, dtype=torch.bool), torch.tensor([[1 / abs(gain - 1)]], dtype=torch.float64))
        assert (damping.beta.item() == 1.0) is kept


def test_linear_maps_that_expand_in_some_directions():
    for kind in ("symmetric", "non_normal"):
        problem = linear(kind, 1.3, N=8)
        sol = Solve(Anderson(), Stop(max_iter=100, rtol=1e-8))(problem.f, problem.z0())
        assert sol.converged.all(), f"{kind}: {sol.summary()}"


@pytest.mark.parametrize("spike", [1e6, -1e6, 1e20])
def test_a_residual_spike_restarts_that_row_from_its_best_point(spike):
    """The next point is best + damping / 2 * residual of best; other rows keep their bits (numerics 8)."""
    b, gain = normal(1, 3, 8), torch.tensor([[0.9], [0.8], [0.95]], dtype=torch.float64)
    plain = exact_rows(b, gain)
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        fz = plain(z)
        if calls == 5:
            fz[1] += spike
        return fz

    seen = Counted(f)
    stop = Stop(max_iter=100, rtol=1e-8, divergence=float("inf"))
    sol = Solve(Anderson(), stop)(seen, torch.zeros_like(b))
    reference = Solve(Anderson(), stop)(plain, torch.zeros_like(b))
    assert sol.converged.all()
    assert_same_rows(sol, [0, 2], reference, [0, 2])
    residuals = [(plain(z) - z)[1].norm() for z in seen.points[:4]]
    best = min(range(4), key=residuals.__getitem__)
    z = seen.points[best][1]
    restart = z + 0.5 * (plain(seen.points[best]) - seen.points[best])[1]
    assert torch.allclose(seen.points[5][1], restart, rtol=1e-13)


def test_the_damping_never_falls_below_its_floor():
    """Every evaluation after the first is worse than allowed: the steps stay 1/16 of the residual."""
    first = True

    def f(z: Tensor) -> Tensor:
        nonlocal first
        fz = z + (1.0 if first else 1e9)
        first = False
        return fz

    seen = Counted(f)
    Solve(Anderson(), Stop(max_iter=12, rtol=1e-12, divergence=float("inf")))(seen, torch.zeros(1, 2).double())
    steps = [z[0, 0].item() for z in seen.points[1:]]
    assert steps[-1] == steps[-2] == Secant.SMALLEST_DAMPING
    assert steps[:5] == [1.0, 0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_history_of_one_row_does_not_touch_others(dtype):
    """Row 0 has a constant residual, so every pair of it is (s, 0); a batched factorisation may raise for all."""
    b = normal(1, 4, 8)
    gain = torch.full((4, 1), 0.9, dtype=torch.float64)
    plain = exact_rows(b, gain)
    singular = {
        "constant residual": lambda z, fz: z + 1,
        "equal pairs": lambda z, fz: torch.where(z < 1e9, z + 1, z),
        "constant map": lambda z, fz: torch.ones_like(z),
        "zero residual": lambda z, fz: z,
        "huge": lambda z, fz: fz * 1e35,
    }
    stop = Stop(max_iter=60, rtol=1e-5)
    reference = Solve(Anderson(), stop)(plain, torch.zeros(4, 8, dtype=dtype))
    for name, row in singular.items():

        def f(z: Tensor, row=row) -> Tensor:
            fz = plain(z)
            return torch.cat([row(z[:1], fz[:1]), fz[1:]])

        sol = Solve(Anderson(), stop)(f, torch.zeros(4, 8, dtype=dtype))
        assert_same_rows(sol, slice(1, 4), reference, slice(1, 4))
        assert sol.converged[1:].all(), name


@pytest.mark.parametrize("memory", [2, 3, 5])
def test_long_runs_wrap_the_ring_many_times(memory):
    problem = linear("symmetric", 0.9, N=40)
    sol = Solve(Anderson(memory=memory), Stop(max_iter=400, rtol=1e-10))(problem.f, problem.z0())
    assert sol.converged.all()
    assert sol.steps.max() > 2 * memory
    assert ((sol.z - problem.truth).norm(dim=1) <= 10 * problem.tolerance(1e-10) * problem.kappa).all()


@pytest.mark.parametrize("ridge", [0.0, 1e-14, 1e-4])
def test_any_ridge_solves_a_contraction(ridge):
    problem = linear("symmetric", 0.9)
    sol = Solve(Anderson(ridge=ridge), Stop(max_iter=200, rtol=1e-8))(problem.f, problem.z0())
    assert sol.converged.all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory", 0),
        ("memory", 2.5),
        ("memory", "5"),
        ("damping", 0.0),
        ("damping", 1.5),
        ("damping", float("nan")),
        ("ridge", -1e-9),
        ("ridge", 1.0),
        ("ridge", float("nan")),
    ],
)
def test_options_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be "):
        Anderson(**{field: value})
