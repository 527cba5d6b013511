"""The problems of the literature are what they are said to be: known roots, published starts, second formulations."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from deqlm.comparison.problems.literature import algorithms, literature, literature_problems
from deqlm.comparison.problems.literature.boundary_value import bratu, picard
from deqlm_solvers.truth import jacobians

PROBLEMS = {problem.name: problem for problem in literature_problems()}
EVERY = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def by_numpy(name, x):
    """F or f of a row as the library has it, for a point given as an array."""
    return PROBLEMS[name].function(torch.from_numpy(x)[None])[0].numpy()


def points(n, count=4, low=-1.5, high=1.5):
    return np.random.default_rng(n).uniform(low, high, (count, n))


def gradient(value, x, h=1e-6):
    """Central differences."""
    steps = h * np.eye(len(x))
    return np.array([(value(x + e) - value(x - e)) / (2 * h) for e in steps])


def test_there_are_as_many_as_the_documents_say():
    assert len(list(literature_problems())) == len(PROBLEMS) == 136
    assert sum(name.startswith("chebyquad") for name in PROBLEMS) == 12
    assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name) for name in PROBLEMS)


@EVERY
def test_starts_are_rows_of_finite_numbers_and_give_such_rows(problem):
    assert problem.start.shape == (1, problem.unknowns)
    assert problem.start.dtype == torch.float64
    for form in problem.forms:
        value = problem.map(form)(problem.start)
        assert value.shape == problem.start.shape
        assert value.isfinite().all()
    assert problem.residual(problem.start).item() > 1e-8
    assert problem.max_iter >= 500


@EVERY
def test_rows_are_independent_and_float32_agrees(problem):
    points = torch.cat((problem.start, problem.start + 0.1))
    with torch.no_grad():
        together = problem.function(points)
        assert torch.allclose(together[1:], problem.function(points[1:]), rtol=1e-10, atol=1e-10)
        low = problem.function(problem.start.float())
    assert low.dtype == torch.float32
    size = problem.function(problem.start).abs().max().clamp(1, 1e30)
    assert low.isinf().any() or torch.allclose(low.double(), together[:1], rtol=1e-3, atol=1e-3 * size.item())


@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if problem.root is not None])
def test_a_known_root_is_one(name):
    problem = PROBLEMS[name]
    assert problem.root is not None
    assert problem.root.shape == problem.start.shape
    assert problem.residual(problem.root).item() <= 1e-12


@pytest.mark.parametrize("name", [name for name in PROBLEMS if not re.search(r"_x10+$", name)])
def test_derivatives_agree_with_differences(name):
    """At a point off the start, where maxima and thresholds have no kinks."""
    problem = PROBLEMS[name]
    z = problem.start + 0.03 + 0.01 * torch.sin(torch.arange(problem.unknowns, dtype=torch.float64))
    J = jacobians(problem.function, z)[0]
    v = torch.cos(torch.arange(problem.unknowns, dtype=torch.float64))
    h = 1e-6
    with torch.no_grad():
        difference = (problem.function(z + h * v) - problem.function(z - h * v))[0] / (2 * h)
    size = torch.linalg.vector_norm(J).item() * torch.linalg.vector_norm(v).item()
    assert torch.linalg.vector_norm(J @ v - difference).item() <= 1e-6 * size + 1e-9


def test_forms_have_the_roots_of_the_system():
    wood = literature("wood")
    assert wood.root is not None
    for form in wood.forms:
        assert torch.equal(wood.map(form)(wood.root), wood.root)
    assert torch.equal(wood.map("z - F")(wood.start), wood.start - wood.system(wood.start))
    dottie = literature("dottie")
    assert torch.equal(dottie.system(dottie.start), dottie.start - torch.cos(dottie.start))
    with pytest.raises(ValueError, match="form must be one of f for dottie"):
        dottie.map("z - F")


def test_residuals_that_are_no_numbers_are_infinite():
    assert literature("heron").residual(torch.zeros(1, 1)).item() == math.inf


def test_starts_are_scaled_as_minpack_does():
    assert torch.equal(literature("wood_x100").start, 100 * literature("wood").start)
    assert torch.equal(literature("watson_6_x10").start, torch.full((1, 6), 10.0, dtype=torch.float64))


def test_an_unknown_name_has_a_nearest_one():
    with pytest.raises(KeyError, match="did you mean 'wood'"):
        literature("woods")


def test_chebyquad_is_the_quadrature_of_chebyshev_polynomials():
    for x in points(7, low=0, high=1):
        wanted = []
        for degree in range(1, 8):
            p = np.polynomial.chebyshev.Chebyshev.basis(degree, domain=[0, 1])
            wanted.append(p(x).mean() - (p.integ()(1) - p.integ()(0)))
        np.testing.assert_allclose(by_numpy("chebyquad_7", x), wanted, atol=1e-13)


def test_chebyquad_of_eight_has_the_least_sum_that_is_published():
    problem = literature("chebyquad_8")
    z = problem.start.clone()
    for _ in range(60):  # Gauss-Newton with damping
        J = jacobians(problem.function, z)[0]
        r = problem.system(z)[0].detach()
        z = z - 0.5 * torch.linalg.lstsq(J, r[:, None], driver="gelsd").solution[:, 0]
    assert problem.residual(problem.start).item() > problem.least
    assert problem.residual(z).item() >= problem.least * (1 - 1e-6)


@pytest.mark.parametrize("n", [2, 6, 9])
def test_watson_is_half_the_gradient_of_its_sum_of_squares(n):
    def total(x):
        t = np.arange(1, 30) / 29
        slope = np.sum([j * x[j] * t ** (j - 1) for j in range(1, n)], 0)
        value = np.sum([x[j] * t**j for j in range(n)], 0)
        return ((slope - value**2 - 1) ** 2).sum() + x[0] ** 2 + (x[1] - x[0] ** 2 - 1) ** 2

    for x in points(n, low=-0.5, high=0.5):
        np.testing.assert_allclose(by_numpy(f"watson_{n}", x), gradient(total, x) / 2, rtol=1e-6, atol=1e-6)


def test_wood_and_the_variably_dimensioned_are_gradients():
    def wood(x):
        a, b, c, d = x
        return (
            100 * (b - a * a) ** 2 + (1 - a) ** 2 + 90 * (d - c * c) ** 2 + (1 - c) ** 2
            + 10.1 * ((b - 1) ** 2 + (d - 1) ** 2) + 19.8 * (b - 1) * (d - 1)
        )  # fmt: skip

    def variable(x):
        s = (np.arange(1, 11) * (x - 1)).sum()
        return ((x - 1) ** 2).sum() + s**2 + s**4

    for x in points(4):
        np.testing.assert_allclose(by_numpy("wood", x), gradient(wood, x) / [2, 1, 2, 1], rtol=1e-6, atol=1e-5)
    for x in points(10, low=0.9, high=1.1):
        name = "variably_dimensioned_10"
        np.testing.assert_allclose(by_numpy(name, x), gradient(variable, x) / 2, rtol=1e-6, atol=1e-4)


def test_the_helix_has_the_angle_of_the_paper():
    for a, b, turns in ((1, 1, 1 / 8), (-1, 1, 3 / 8), (-1, -1, 5 / 8), (1, -1, -1 / 8), (-1, 0, 0.5), (-1, -0.0, 0.5)):
        value = by_numpy("helical_valley", np.array([a, b, 0.0]))
        np.testing.assert_allclose(value, [-100 * turns, 10 * (math.hypot(a, b) - 1), 0], atol=1e-12)


def test_banded_tridiagonal_and_integral_systems_agree_with_their_sums():
    for x in points(10):
        banded = [
            x[k] * (2 + 5 * x[k] ** 2) + 1 - sum(x[j] * (1 + x[j]) for j in range(10) if -1 <= k - j <= 5 and j != k)
            for k in range(10)
        ]
        np.testing.assert_allclose(by_numpy("broyden_banded_10", x), banded, atol=1e-12)
        wide = np.concatenate(([0], x, [0]))
        tri = [(3 - 2 * wide[k]) * wide[k] - wide[k - 1] - 2 * wide[k + 1] + 1 for k in range(1, 11)]
        np.testing.assert_allclose(by_numpy("broyden_tridiagonal_10", x), tri, atol=1e-12)
        h, t = 1 / 11, np.arange(1, 11) / 11
        cube = (x + t + 1) ** 3
        kernel = np.where(t[None] <= t[:, None], t[None] * (1 - t[:, None]), t[:, None] * (1 - t[None]))
        np.testing.assert_allclose(by_numpy("discrete_integral_10", x), x + h / 2 * kernel @ cube, atol=1e-12)
        second = [2 * wide[k] - wide[k - 1] - wide[k + 1] for k in range(1, 11)]
        np.testing.assert_allclose(by_numpy("discrete_boundary_value_10", x), second + h**2 / 2 * cube, atol=1e-12)


def test_spectral_systems_agree_with_their_formulas():
    for x in points(50):
        wide, i = np.concatenate(([0], x, [0])), np.arange(1, 51)
        singular = [
            i[k] * x[k] ** 3 / 3 - (x[k] ** 2 / 2 if k else 0) + (x[k + 1] ** 2 / 2 if k < 49 else 0) for k in range(50)
        ]
        np.testing.assert_allclose(by_numpy("singular_function", x), singular, atol=1e-12)
        trigexp = [3 * x[0] ** 3 + 2 * x[1] - 5 + np.sin(x[0] - x[1]) * np.sin(x[0] + x[1])]
        for k in range(1, 49):
            a, b, c = wide[k : k + 3]
            waves = np.sin(b - c) * np.sin(b + c)
            trigexp.append(-a * np.exp(a - b) + b * (4 + 3 * b * b) + 2 * c + waves - 8)
        trigexp.append(-x[48] * np.exp(x[48] - x[49]) + 4 * x[49] - 3)
        np.testing.assert_allclose(by_numpy("trigexp", x), trigexp, atol=1e-11)
        np.testing.assert_allclose(by_numpy("logarithm", x / 2), np.log(1 + x / 2) - x / 100, atol=1e-13)


def test_the_piecewise_cubic_joins_without_a_jump():
    for edge in (-1.0, 2.0):
        below, above = (by_numpy("augmented_powell_9", np.full(9, edge + d))[2] for d in (-1e-9, 1e-9))
        assert below == pytest.approx(above, abs=1e-7)
        assert above == pytest.approx(2.5 * math.copysign(1, edge) + (0.5 if edge == 2 else 0), abs=1e-7)


@pytest.mark.parametrize(("dimension", "side"), [(1, 32), (2, 8)])
def test_bratus_residual_and_picards_iteration_are_one_equation(dimension, side):
    line = 2 * np.eye(side) - np.eye(side, k=1) - np.eye(side, k=-1)
    A = line if dimension == 1 else np.kron(line, np.eye(side)) + np.kron(np.eye(side), line)
    h = 1 / (side + 1)
    for u in points(side**dimension, count=2, low=0, high=1):
        row = torch.from_numpy(u)[None]
        wanted = A @ u - 3 * h**2 * np.exp(u)
        np.testing.assert_allclose(bratu(row, dimension, 3.0)[0].numpy(), wanted, atol=1e-13)
        solved = np.linalg.solve(A / h**2, 3 * np.exp(u))
        np.testing.assert_allclose(picard(row, dimension, 3.0)[0].numpy(), solved, rtol=1e-11)


def test_the_square_of_the_tutorial_is_held_at_one_above():
    value = by_numpy("integro_differential_8", np.zeros(64)).reshape(8, 8)
    np.testing.assert_allclose(value[0], 81 - 10)
    np.testing.assert_allclose(value[1:], -10)


def test_chandrasekhars_h_at_half_albedo_has_its_mean():
    """The integral of H over [0, 1] is 2/c (1 - sqrt(1 - c)), by rule of the midpoints to their square."""
    problem = PROBLEMS["h_equation_c05"]
    z = problem.start
    for _ in range(60):
        z = problem.function(z)
    assert problem.residual(z).item() < 1e-12
    assert z.mean().item() == pytest.approx(2 / 0.5 * (1 - math.sqrt(0.5)), abs=1e-12)


def iterate(f, z, count):
    with torch.no_grad():
        for _ in range(count):
            z = f(z)
    return z


def test_value_iteration_ends_at_the_value_of_its_best_policy():
    draw = torch.Generator().manual_seed(3)
    chance = torch.rand(4, 9, 9, generator=draw, dtype=torch.float64)
    chance = chance / chance.sum(2, keepdim=True)
    reward = torch.rand(4, 9, generator=draw, dtype=torch.float64)
    v = iterate(lambda v: algorithms.bellman(v, chance, reward, 0.5), torch.zeros(1, 9, dtype=torch.float64), 60)
    policy = (reward + 0.5 * torch.einsum("asj,j->as", chance, v[0])).argmax(0)
    P, r = chance[policy, torch.arange(9)], reward[policy, torch.arange(9)]
    assert torch.allclose(torch.linalg.solve(torch.eye(9, dtype=torch.float64) - 0.5 * P, r), v[0], atol=1e-14)


def test_sinkhorn_ends_at_a_plan_with_both_marginals():
    draw = torch.Generator().manual_seed(3)
    cost = torch.rand(6, 6, generator=draw, dtype=torch.float64)
    u = iterate(lambda u: algorithms.sinkhorn(u, cost, 0.5), torch.zeros(1, 6, dtype=torch.float64), 60)
    v = -0.5 * torch.logsumexp((u[0][:, None] - cost) / 0.5 - math.log(6), 0)
    plan = torch.exp((u[0][:, None] + v - cost) / 0.5) / 36
    for side in (0, 1):
        assert torch.allclose(plan.sum(side), torch.full((6,), 1 / 6, dtype=torch.float64), atol=1e-14)


def test_proximal_steps_end_where_the_conditions_of_optimality_hold():
    draw = torch.Generator().manual_seed(3)
    A = torch.randn(9, 5, generator=draw, dtype=torch.float64)
    b = torch.randn(9, generator=draw, dtype=torch.float64)
    zero = torch.zeros(1, 5, dtype=torch.float64)
    x = iterate(lambda x: algorithms.ista(x, A, b, 0.7), zero, 2000)[0]
    slope = A.mT @ (A @ x - b)
    assert torch.allclose(slope[x != 0], -0.7 * x[x != 0].sign(), atol=1e-12)
    assert (slope.abs() <= 0.7 + 1e-12).all()
    x = iterate(lambda x: algorithms.projected(x, A, b), zero, 2000)[0]
    slope = A.mT @ (A @ x - b)
    assert (x >= 0).all()
    assert (slope >= -1e-12).all()
    assert (slope * x).abs().max() <= 1e-12


def test_the_poisson_mixture_climbs_to_the_maximum_that_is_published():
    problem = PROBLEMS["poisson_mixture"]
    z = iterate(problem.function, problem.start, 8000)
    assert z[0].tolist() == pytest.approx([0.3599, 1.2561, 2.6634], abs=1e-3)


def test_riccati_page_rank_and_the_equilibrium_end_where_others_find_them():
    linalg = pytest.importorskip("scipy.linalg")
    draw = torch.Generator().manual_seed(3)
    f = algorithms._riccati(draw)
    P = iterate(f, torch.zeros(1, 16, dtype=torch.float64), 300).reshape(4, 4).numpy()
    draw = torch.Generator().manual_seed(3)
    A = torch.randn(4, 4, generator=draw, dtype=torch.float64).numpy() * 0.7
    B = torch.randn(4, 2, generator=draw, dtype=torch.float64).numpy()
    np.testing.assert_allclose(P, linalg.solve_discrete_are(A, B, np.eye(4), np.eye(2)), rtol=1e-10)
    links = torch.tensor([[0, 1, 0], [0.5, 0, 0.5], [1, 0, 0]], dtype=torch.float64)
    p = iterate(lambda p: algorithms.page_rank(p, links, 0.85), torch.full((1, 3), 1 / 3).double(), 200)[0]
    google = 0.85 * links + 0.05
    assert torch.allclose(p @ google, p)
    assert p.sum().item() == pytest.approx(1)
    mixed = PROBLEMS["logit_equilibrium"]
    assert mixed.root is not None
    radius = torch.linalg.eigvals(jacobians(mixed.function, mixed.root)[0]).abs().max().item()
    assert radius == pytest.approx(3.5 / math.sqrt(3))


def test_starts_of_the_classics_lead_where_the_books_say():
    colebrook = iterate(PROBLEMS["colebrook"].function, PROBLEMS["colebrook"].start, 100)
    assert (1 / colebrook[0, 4] ** 2).item() == pytest.approx(0.0185, abs=2e-4)  # Moody: k/D = 1e-4, Re = 1e5
    kepler = PROBLEMS["kepler_05"]
    E = iterate(kepler.function, kepler.start, 100)
    assert torch.allclose(E - 0.5 * E.sin(), kepler.start)
    critical = PROBLEMS["mean_field_cold"]
    z = iterate(critical.function, critical.start, 200)
    assert z.item() == pytest.approx(0.95750402407)
