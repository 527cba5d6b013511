"""Every built-in problem has the spectrum and the answer that it claims."""

from __future__ import annotations

import pytest
import torch

from deqlm.comparison import DEFAULT, PROBLEMS, TOLERANCES, Settings
from deqlm.comparison.problems import DIFFERENTIABLE, QUICK, HardRow, NonNormal, Parity, Rotation, Symmetric, Tanh
from deqlm.comparison.truth import bisect, jacobians, polish
from deqlm_solvers import FixedPoint, Solve, Stop

DOUBLE = Settings(dtype=torch.float64, batch=2)
SMALL = {"unknowns": 16}


def jacobian(problem, settings=DOUBLE):
    case = problem.build(settings)
    return jacobians(case.f, case.z0)


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_float64_answer_is_a_fixed_point_and_float32_agrees(name):
    problem = PROBLEMS[name]()
    case = problem.build(Settings(dtype=torch.float32, batch=2))
    truth = case.solution()
    assert truth is not None
    assert truth.dtype == torch.float64
    assert truth.shape == case.z0.shape
    with torch.no_grad():
        assert torch.linalg.vector_norm(case.exact(truth) - truth) <= 1e-11 * torch.linalg.vector_norm(truth)
        assert torch.allclose(case.f(truth.float()).double(), truth, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("problem", [*DEFAULT, *QUICK, *DIFFERENTIABLE], ids=lambda p: p.label)
def test_default_problems_build_the_same_twice_in_every_dtype(problem):
    for dtype in TOLERANCES:
        first, second = (problem.build(Settings(dtype=dtype, batch=2, seed=3)) for _ in range(2))
        with torch.no_grad():
            fz = first.f(first.z0)
            assert torch.equal(fz, second.f(second.z0))
        assert fz.dtype == dtype
        assert fz.shape == first.z0.shape


@pytest.mark.parametrize("problem", DEFAULT, ids=lambda p: p.label)
def test_the_seed_changes_the_problem(problem):
    with torch.no_grad():
        values = [case.f(case.z0) for case in (problem.build(Settings(batch=2, seed=seed)) for seed in (0, 1))]
    assert not torch.equal(*values)


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99])
def test_symmetric_spectrum(rho):
    J = jacobian(Symmetric(rho=rho, **SMALL))[0]
    assert torch.allclose(J, J.mT)
    assert torch.allclose(torch.linalg.eigvalsh(J), torch.linspace(-rho, rho, 16, dtype=torch.float64))


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99])
def test_nonnormal_spectrum_and_growth(rho):
    J = jacobian(NonNormal(rho=rho, unknowns=64))[0]
    assert torch.linalg.eigvals(J).abs().max().item() == pytest.approx(rho, rel=1e-9)
    assert torch.linalg.matrix_norm(J, 2) > 2 * rho
    if rho >= 0.9:
        assert max(torch.linalg.matrix_norm(torch.linalg.matrix_power(J, k), 2) for k in range(12)) > 2.5


def test_rotation_turns_by_60_degrees_and_stretches():
    eigenvalues = torch.linalg.eigvals(jacobian(Rotation(radius=1.1, **SMALL))[0])
    assert torch.allclose(eigenvalues.abs(), torch.full((16,), 1.1, dtype=torch.float64))
    assert torch.allclose(eigenvalues.angle().abs(), torch.full((16,), torch.pi / 3, dtype=torch.float64))


def test_one_row_is_hard():
    J = jacobian(HardRow(**SMALL), Settings(dtype=torch.float64))
    radius = torch.linalg.eigvals(J).abs().amax(1)
    assert radius[7].item() == pytest.approx(0.998)
    assert torch.allclose(radius[torch.arange(32) != 7], torch.tensor(0.5, dtype=torch.float64))


def test_tanh_weight_has_the_radius_asked_for():
    case = Tanh(rho=1.2, **SMALL).build(DOUBLE)
    assert torch.linalg.eigvals(case.parameters[0]).abs().max().item() == pytest.approx(1.2)
    assert case.solution() is None


def test_two_cycle_never_settles_under_plain_iteration():
    case = PROBLEMS["two_cycle"]().build(DOUBLE)
    sol = Solve(FixedPoint(), Stop(max_iter=500, rtol=1e-3))(case.f, case.z0)
    assert not sol.converged.any()
    with torch.no_grad():
        z = case.z0
        for _ in range(500):
            z = case.f(z)
        assert torch.allclose(case.f(case.f(z)), z, atol=1e-3)
        assert (case.f(z) - z).abs().amax(1).min() > 1


def test_parity_residual_is_constant_and_then_zero():
    case = Parity().build(Settings())
    stop = Stop(max_iter=400, rtol=1e-5, trace=True)
    sol = Solve(FixedPoint(), stop)(case.f, case.z0)
    assert sol.trace is not None
    assert sol.trace.shape[0] == 256
    assert (sol.trace[:255] == 1).all()
    assert (sol.trace[255] == 0).all()


def test_the_transformer_reads_text():
    from deqlm.comparison.problems.transformer import read_text

    text = read_text(3, 64)
    assert text.shape == (3, 64)
    assert "the" in bytes(text.flatten().tolist()).decode()
    assert len({tuple(row) for row in text.tolist()}) == 3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("symmetric", {"rho": 1.0}),
        ("rotation", {"unknowns": 5}),
        ("parity", {"length": 1}),
        ("transformer", {"width": 6}),
    ],
)
def test_bad_options_are_refused(name, options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        PROBLEMS[name](**options)


def test_labels_can_be_typed():
    from deqlm.comparison.problems.named import to_problem

    for problem in DEFAULT:
        assert to_problem(problem.label) == problem


def test_polish_says_none_where_there_is_no_fixed_point():
    assert polish(lambda z: z + 1, torch.zeros(1, 2, dtype=torch.float64)) is None


def test_bisect_finds_the_root_of_each_unknown():
    limit = torch.full((1, 3), 4.0, dtype=torch.float64)
    target = torch.tensor([[-1.0, 0.5, 3.0]], dtype=torch.float64)
    assert torch.allclose(bisect(lambda z: target - z, -limit, limit), target, atol=1e-15)


def test_a_jacobian_of_the_identity_is_no_alias_of_its_cotangents():
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.equal(jacobians(lambda z: z + 1, torch.zeros(2, 3, dtype=torch.float64)), eye.expand(2, 3, 3))
