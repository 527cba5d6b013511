"""Newton-Krylov: hard maps, true counts, how products are had, line search, forcing, restarts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import exact_rows, linear, normal, tanh_layer
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import Evaluation, NewtonKrylov, Solve, Status, Stop
from deqlm_solvers.loop.derivative import NoDerivativeError, Recorded
from solvers.differentiated import SineForward, SineOnce

RTOL = {torch.float32: 1e-5, torch.float64: 1e-10}


def solved(f, sol, rtol: float) -> Tensor:
    z = sol.z.double()
    fz = f(z)
    return (fz - z).norm(dim=1) <= 1.05 * rtol * fz.norm(dim=1)


def tanh_map(N: int, B: int, rho: float, seed: int):
    W = normal(seed, N, N) / N**0.5
    if N <= 1024:
        W = W / torch.linalg.eigvals(W).abs().max()
    b = normal(seed + 1, B, N)
    return lambda z: torch.tanh(z @ (rho * W).to(z).T + b.to(z))


def rotation(angles: Tensor, size: float):
    b = normal(7, 4, 2 * len(angles))
    turn = torch.stack(
        (torch.stack((angles.cos(), -angles.sin()), -1), torch.stack((angles.sin(), angles.cos()), -1)), -2
    )
    return lambda z: torch.einsum("bkj,kij->bki", z.view(4, -1, 2), size * turn.to(z)).reshape(z.shape) + b.to(z)


SHIFT = normal(8, 4, 64)
ANGLES = torch.linspace(0.3, 2.8, 32, dtype=torch.float64)
HARD = {
    "rotations .98": (rotation(ANGLES, 0.98), 64, 200),
    "rotation 1.1": (rotation(torch.full((32,), math.pi / 3, dtype=torch.float64), 1.1), 64, 10),
    "logistic": (lambda z: 3.3 * z * (1 - z), 4, 30),
    "two-cycle": (lambda z: torch.tanh(-1.6 * z + SHIFT.to(z)), 64, 60),
    "tanh 1.2": (tanh_map(512, 4, 1.2, 20), 512, 200),
    "non-normal .99": (linear("non_normal", 0.99, B=4, N=64).f, 64, 300),
    "symmetric .99": (linear("symmetric", 0.99, B=4, N=64).f, 64, 200),
}


@pytest.mark.parametrize("dtype", RTOL, ids=["float32", "float64"])
@pytest.mark.parametrize("name", HARD)
def test_hard_maps(name, dtype):
    f, N, max_iter = HARD[name]
    sol = Solve(NewtonKrylov(), Stop(max_iter=max_iter, rtol=RTOL[dtype]))(f, torch.full((4, N), 0.5, dtype=dtype))
    assert solved(f, sol, RTOL[dtype]).all(), sol.summary()
    assert sol.converged.all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", RTOL, ids=["float32", "float64"])
@pytest.mark.parametrize(("N", "rho"), [(512, 1.2), (512, 1.5), (1024, 1.2), (1024, 1.5), (2048, 1.2)])
def test_tanh_layers_that_expand(N, rho, dtype):
    """Four of them were open when the peers were measured; measured here: at most 200 evaluations of 600."""
    f = tanh_map(N, 2, rho, 30 + N)
    sol = Solve(NewtonKrylov(), Stop(max_iter=600, rtol=RTOL[dtype]))(f, torch.zeros(2, N, dtype=dtype))
    assert solved(f, sol, RTOL[dtype]).all(), sol.summary()


def test_a_linear_map_takes_as_many_products_as_it_has_eigenvalues():
    """J of one complex pair: two products end in the exact step, whatever the forcing."""
    f, N, _ = HARD["rotation 1.1"]
    counted = Counted(f)
    sol = Solve(NewtonKrylov(), Stop(rtol=1e-10))(counted, torch.zeros(4, N, dtype=torch.float64))
    assert sol.steps.tolist() == [4] * 4
    assert counted.calls == sol.cost.evaluations == 2
    assert sol.cost.jvps == 2


@pytest.mark.parametrize("rows", [1, 4])
def test_counts_are_those_of_a_counting_map(rows, monkeypatch):
    products = []
    product = Recorded.product
    monkeypatch.setattr(Recorded, "product", lambda self, v: products.append(1) or product(self, v))
    problem = tanh_layer(0.9, B=rows, N=30)
    for max_iter in (1, 2, 3, 4, 5, 9, 20, 200):
        for rtol in (1e-10, 0):
            products.clear()
            f = Counted(problem.f)
            sol = Solve(NewtonKrylov(), Stop(max_iter=max_iter, rtol=rtol))(f, problem.z0())
            assert sol.cost.evaluations == f.calls <= max_iter
            assert sol.cost.row_evaluations == rows * f.calls
            assert sol.cost.jvps == len(products) <= max_iter
            assert (sol.steps <= max_iter).all()
            if rows == 1:
                spent = sol.cost.evaluations + sol.cost.jvps
                # a step too small to move the point of a budget is not evaluated again
                assert spent == sol.steps.max() if rtol else spent <= max_iter


def test_forward_mode_takes_over_where_there_is_no_second_derivative():
    b, W = normal(1, 3, 5), normal(2, 5, 5) / 3
    stop = Stop(max_iter=100, rtol=1e-12)
    want = Solve(NewtonKrylov(), stop)(lambda z: torch.sin(z @ W.T) + b, torch.zeros_like(b))
    f = Counted(lambda z: SineForward.apply(z @ W.T) + b)
    sol = Solve(NewtonKrylov(), stop)(f, torch.zeros_like(b))
    assert sol.converged.all()
    torch.testing.assert_close(sol.z, want.z, rtol=1e-11, atol=1e-12)
    assert abs(int(sol.steps.max()) - int(want.steps.max())) <= 1
    assert sol.cost.evaluations == f.calls
    assert sol.cost.jvps > 0
    with pytest.raises(NoDerivativeError, match=r"use 'anderson' or 'broyden'.*forward mode: .*; reverse mode: "):
        Solve(NewtonKrylov(), stop)(lambda z: SineOnce.apply(z @ W.T) + b, torch.zeros_like(b))


def test_products_are_exact():
    """Against central differences in float64, both ways of having them."""
    b, W, v = normal(1, 2, 6), normal(2, 6, 6), normal(3, 2, 6)
    z = normal(4, 2, 6)
    want = (torch.sin((z + 1e-6 * v) @ W.T) - torch.sin((z - 1e-6 * v) @ W.T)) / 2e-6
    torch.testing.assert_close(Recorded(lambda t: torch.sin(t @ W.T) + b, z).product(v), want, rtol=1e-7, atol=1e-8)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["newton", "newton_krylov"])
def test_layers_with_fused_kernels_for_inference(name, mode):
    """Fused attention has no second derivative and no forward mode; inference mode no graph at all."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    x = normal(5, 2, 4, 8)
    with mode():
        sol = deqlm.solve(
            lambda z, u: 0.3 * layer(z + u),
            torch.zeros_like(x),
            args=(x,),
            solver=name,
            stop=Stop(max_iter=400, rtol=1e-10),
        )
    assert sol.converged.all()
    assert sol.cost.jvps > 0
    assert int(sol.steps.max()) <= 40, "plain iteration in disguise"


def test_noise_that_a_deq_holds_fixed_is_fixed_in_products_too():
    torch.manual_seed(0)
    deq = deqlm.DEQ(
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh()), solver="newton_krylov", stop=Stop(rtol=1e-5)
    )
    _, sol = deq(torch.randn(4, 8), with_stats=True)
    assert sol.converged.all()


@pytest.mark.parametrize("name", ["newton", "newton_krylov"])
def test_tokens_that_do_not_count_may_be_nan(name):
    mask = torch.tensor([[True, True, False], [True, True, True]])
    weight = torch.where(mask, 1.0, torch.nan)[..., None]
    f = lambda z: weight * (torch.tanh(1.5 * z) + 1)  # noqa: E731
    z0 = torch.ones(2, 3, 4)
    sol = deqlm.solve(f, z0, solver=name, stop=Stop(max_iter=120, per="token", rtol=1e-5), token_mask=mask)
    assert sol.converged.all()
    assert (sol.z[0, 2] == 1).all()


def test_autocast_reaches_the_products():
    layer = nn.Linear(8, 8)
    seen = []

    def f(z: Tensor) -> Tensor:
        out = layer(z)
        seen.append(out.dtype)
        return torch.tanh(out).to(z.dtype)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        sol = Solve(NewtonKrylov(), Stop(rtol=0.05))(f, torch.zeros(2, 8))
    assert sol.converged.all()
    assert set(seen) == {torch.bfloat16}


def test_a_step_that_overshoots_is_shortened():
    f = lambda z: z - torch.atan(z)  # noqa: E731
    z0 = torch.tensor([[1.0], [3.0], [20.0], [-100.0]], dtype=torch.float64)
    sol = Solve(NewtonKrylov(), Stop(max_iter=60, rtol=0, atol=1e-10))(f, z0)
    assert sol.converged.all()
    assert sol.z.abs().max() <= 1e-9


def test_a_singular_row_takes_plain_steps_and_the_others_do_not_notice():
    b = normal(0, 3, 4)
    gain = torch.tensor([[0.5], [1.0], [0.3]], dtype=torch.float64)
    f = exact_rows(b, gain)
    spoiled = lambda z: torch.where(gain == 1, z + 1, f(z))  # noqa: E731
    stop = Stop(max_iter=40, rtol=1e-10)
    sol = Solve(NewtonKrylov(), stop)(spoiled, torch.zeros_like(b))
    assert_same_rows(sol, [0, 2], Solve(NewtonKrylov(), stop)(f, torch.zeros_like(b)), [0, 2])
    assert sol.converged.tolist() == [True, False, True]
    end = Solve(NewtonKrylov(damping=0.25), Stop(max_iter=7, rtol=0))(lambda z: z + 1, torch.zeros(1, 1))
    # a product and a step, a product and two steps
    assert end.z.item() == 1.0
    assert end.status.tolist() == [Status.BUDGET]


@pytest.mark.parametrize("name", ["newton", "newton_krylov"])
def test_a_minimum_of_the_residual_that_is_no_solution_is_left(name):
    """From 0, both Newton's direction and a short walk lead into the minimum of |1 + tanh(1.5 z) - z| near -.5."""
    f = lambda z: torch.tanh(1.5 * z) + 1  # noqa: E731
    sol = Solve(name, Stop(max_iter=120, rtol=1e-10))(f, torch.zeros(2, 3, dtype=torch.float64))
    assert sol.converged.all()
    assert (sol.z > 1.9).all()


def test_restarts_bring_a_small_space_further():
    problem = linear("symmetric", 0.95, B=3, N=60)
    stop = Stop(max_iter=400, rtol=1e-9)
    steps = {}
    for solver in (NewtonKrylov(krylov=6, restarts=0), NewtonKrylov(krylov=6, restarts=3), NewtonKrylov(krylov=60)):
        sol = Solve(solver, stop)(problem.f, problem.z0())
        assert sol.converged.all()
        assert ((sol.z - problem.truth).norm(dim=1) <= 2 * problem.kappa * problem.tolerance(1e-9)).all()
        steps[solver] = int(sol.steps.max())
    assert steps[NewtonKrylov(krylov=60)] < min(list(steps.values())[:2])


@pytest.mark.parametrize("size", [2.0**20, 2.0**-20])
def test_restarts_do_not_depend_on_the_unit(size):
    problem, solver = linear("symmetric", 0.95, B=3, N=60), NewtonKrylov(krylov=6, restarts=3)
    stop = Stop(max_iter=400, rtol=1e-9)
    want = Solve(solver, stop)(problem.f, problem.z0())
    got = Solve(solver, stop)(lambda z: size * problem.f(z / size), problem.z0())
    assert got.steps.tolist() == want.steps.tolist()
    assert got.cost.jvps == want.cost.jvps


def test_forcing_terms_are_kept_from_falling_too_fast():
    """.9 times the square of a tenth, but .9 eta^2 of the last one while that is above .1."""
    solver, r = NewtonKrylov(forcing=0.9), torch.ones(1, 4, dtype=torch.float64)
    state, found = solver.init(r), []
    for k in range(4):
        at = Evaluation(torch.zeros_like(r), 0.1**k * r)
        solver._arrive(torch.ones(1, 1, dtype=torch.bool), at, state)
        found.append(state.eta.item())
    assert found == pytest.approx([0.729, 0.9 * 0.729**2, 0.9 * (0.9 * 0.729**2) ** 2, 0.009])


def test_a_smaller_forcing_term_needs_fewer_points():
    problem = tanh_layer(0.9, B=1, N=60)
    calls = []
    for forcing in (0.9, 1e-3):
        sol = Solve(NewtonKrylov(forcing=forcing), Stop(max_iter=300, rtol=1e-10))(problem.f, problem.z0())
        assert sol.converged.all()
        calls.append(sol.cost.evaluations)
    assert calls[1] < calls[0]


def test_it_agrees_with_scipy():
    pytest.importorskip("scipy")
    problem = tanh_layer(0.95, B=2, N=20)
    stop = Stop(max_iter=400, rtol=1e-9)
    ours, peer = (Solve(name, stop)(problem.f, problem.z0()) for name in ("newton_krylov", "scipy.krylov"))
    assert ours.converged.all()
    assert peer.converged.all()
    assert ((ours.z - peer.z).norm(dim=1) <= 2 * problem.kappa * problem.tolerance(1e-9)).all()


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (2, 0), (0, 0)])
@pytest.mark.parametrize("name", ["newton", "newton_krylov"])
def test_small_batches(name, shape):
    sol = Solve(name, Stop(rtol=1e-6))(lambda z: 0.5 * z + 1, torch.zeros(shape))
    assert sol.z.shape == shape
    assert sol.converged.all()


@pytest.mark.parametrize("name", ["newton", "newton_krylov"])
def test_a_start_that_is_the_answer_costs_one_evaluation(name):
    sol = Solve(name)(lambda z: 0.5 * z + 1, torch.full((2, 3), 2.0))
    assert sol.cost.evaluations == 1
    assert sol.cost.jvps == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"krylov": 0}, "krylov must be a whole number >= 1, got 0"),
        ({"restarts": -1}, "restarts must be a whole number >= 0, got -1"),
        ({"forcing": 1.0}, r"forcing must be in \(0, 1\), got 1.0"),
        ({"damping": 0.0}, r"damping must be in \(0, 1\], got 0.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NewtonKrylov(**options)


@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_a_row_that_is_not_finite_costs_no_calls_of_f(fill):
    """The graph of one call serves all products also where a point holds NaN, which is not equal to itself."""
    b = normal(1, 4, 20)
    A = normal(2, 4, 20, 20) / 20**0.5
    calls, solutions = [], []
    z0 = torch.zeros_like(b)
    for start in (z0, z0.index_fill(0, torch.tensor(0), fill)):
        f = Counted(lambda z: torch.tanh((A * z[:, None]).sum(2) + b))
        solutions.append(Solve(NewtonKrylov(), Stop(max_iter=200, rtol=1e-8))(f, start))
        calls.append(f.calls)
    assert calls[1] <= calls[0]
    assert_same_rows(solutions[0], [1, 2, 3], solutions[1], [1, 2, 3])


@pytest.mark.parametrize("max_iter", [3, 4, 5, 50])
@pytest.mark.parametrize("test_every", [2, 3, 7, "auto"])
def test_the_last_evaluation_is_tested(test_every, max_iter):
    """A constant map: the third evaluation is at its value, and no later one moves from there."""
    c = normal(0, 4, 5)
    for start in (torch.zeros_like(c), torch.zeros_like(c).index_fill(0, torch.tensor(3), math.nan)):
        sol = Solve(NewtonKrylov(), Stop(max_iter=max_iter, rtol=1e-6, test_every=test_every))(
            lambda z: c + 0 * z, start
        )
        assert sol.converged[:3].all()
        torch.testing.assert_close(sol.z[:3], c[:3], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["newton", "newton_krylov", "dogleg"])
def test_hard_rows_alone_are_as_together(name):
    """Rows that search, walk and restart at different evaluations; only sums, products and quotients in f."""
    b, c = normal(5, 9, 7), 3 * normal(6, 9, 7)

    def cubic(b: Tensor, c: Tensor):
        return lambda z: 0.3 * (c.to(z) * z * z * z.roll(1, 1) - 2 * z + b.to(z) + z * z * c.to(z))

    for test_every in (1, 3):
        stop = Stop(max_iter=200, rtol=1e-6, test_every=test_every)
        together = Solve(name, stop)(cubic(b, c), torch.zeros_like(b))
        for i in range(len(b)):
            own = slice(i, i + 1)
            alone = Solve(name, stop)(cubic(b[own], c[own]), torch.zeros_like(b[own]))
            assert_same_rows(together, own, alone, slice(None))


@pytest.mark.parametrize("name", ["newton", "newton_krylov", "dogleg"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tensors_made_without_grad(name, mode):
    """All that f reads was made in the mode, in which autograd keeps nothing; the points are those with grad."""
    stop = Stop(max_iter=200, rtol=1e-10)
    W, x = normal(1, 4, 4), normal(2, 3, 4)
    want = Solve(name, stop)(lambda z: torch.tanh(z @ W) @ W + x, torch.zeros_like(x))
    with mode():
        W, x = W.clone(), x.clone()
        sol = Solve(name, stop)(lambda z: torch.tanh(z @ W) @ W + x, torch.zeros_like(x))
    assert sol.converged.all()
    assert sol.steps.tolist() == want.steps.tolist()


@pytest.mark.parametrize("name", ["newton", "newton_krylov", "dogleg"])
def test_a_map_opened_without_grad(name):
    """It refuses grad mode, as the weights that models hold for one call do; forward mode needs none."""
    stop = Stop(max_iter=200, rtol=1e-10)
    b, W = normal(1, 3, 5), normal(2, 5, 5) / 3

    def f(z: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("opened without grad mode")
        return torch.sin(z @ W.T) + b

    sol, want = (Solve(name, stop)(g, torch.zeros_like(b)) for g in (f, lambda z: torch.sin(z @ W.T) + b))
    assert sol.converged.all()
    torch.testing.assert_close(sol.z, want.z, rtol=1e-9, atol=1e-10)
    assert (sol.steps - want.steps).abs().max() <= 2


@pytest.mark.parametrize("name", ["newton", "dogleg"])
def test_an_error_of_any_kind_under_grad_is_a_missing_derivative(name):
    def f(z: Tensor) -> Tensor:
        assert not torch.is_grad_enabled(), "this f is for inference"
        return torch.from_numpy(-2 * z.numpy() + 1)

    with pytest.raises(NoDerivativeError, match="this f is for inference"):
        Solve(name, Stop(rtol=1e-8))(f, torch.zeros(2, 3, dtype=torch.float64))
