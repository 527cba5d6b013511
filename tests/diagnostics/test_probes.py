"""Random numbers, work in place, rows that mix, causality, rounding, path dependence."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import deqlm
from deqlm.diagnostics import Cause, Probes

OWN = np.random.default_rng(0)
X = torch.linspace(-1, 1, 24).reshape(4, 6)


def tanh_layer(width: int = 6) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(width, width), nn.Tanh())


@pytest.mark.parametrize(
    ("noise", "source"),
    [
        (lambda z: 0.1 * float(np.random.randn()), "numpy"),
        (lambda z: 0.1 * random.random(), "random"),
        (lambda z: 0.1 * float(OWN.standard_normal()), "state"),
    ],
)
def test_the_generator_of_noise_is_named(noise, source):
    found = deqlm.diagnose(lambda z: 0.5 * z + 1 + noise(z), torch.zeros(2, 3))
    assert found.cause is Cause.STOCHASTIC
    assert (found.randomness.source, found.randomness.held) == (source, False)
    assert found.randomness.difference > 1e-3
    assert found.suggestion.worked is None


@pytest.mark.filterwarnings("ignore:layer is a function that uses the module")
def test_a_deq_holds_the_noise_of_torch_and_no_other():
    noisy = nn.Sequential(*tanh_layer(), nn.Dropout(0.3))
    held = deqlm.diagnose(deqlm.DEQ(noisy), X)
    assert held.healthy
    assert (held.randomness.source, held.randomness.held) == ("torch", True)
    assert deqlm.diagnose(deqlm.DEQ(noisy).eval(), X).randomness.source is None
    layer = tanh_layer()
    free = deqlm.diagnose(deqlm.DEQ(lambda z: layer(z) + 0.1 * float(np.random.randn())), X)
    assert free.cause is Cause.STOCHASTIC
    assert free.randomness.source == "numpy"


def test_a_plain_map_has_its_noise_held_too():
    found = deqlm.diagnose(lambda z: 0.5 * z + 1 + 0.1 * torch.randn(z.shape), torch.zeros(2, 3))
    assert found.healthy
    assert (found.randomness.source, found.randomness.held) == ("torch", True)
    assert found.randomness.difference > 1e-3


def test_rare_noise_is_found():
    f = lambda z: (0.5 * z + 1) * torch.from_numpy(np.random.rand(*z.shape) > 0.02)  # noqa: E731
    assert deqlm.diagnose(f, torch.zeros(1, 2)).cause is Cause.STOCHASTIC


def in_place_data(z):
    z.data.mul_(0.5)
    return z + 1


@pytest.mark.parametrize("f", [lambda z: z.mul_(0.5).add_(1), in_place_data, lambda z: torch.tanh_(z) * 0.5 + 1])
def test_work_in_place_is_found_and_cured(f):
    found = deqlm.diagnose(f, torch.ones(2, 3))
    assert found.cause is Cause.IN_PLACE
    assert found.in_place.writes_argument
    assert found.suggestion.worked
    assert bool(found.suggestion.apply(f)(torch.ones(2, 3)).converged.all())


def test_an_own_buffer_is_noticed():
    buffer = torch.zeros(2, 3)

    def f(z):
        return buffer.copy_(0.5 * z + 1)

    with torch.no_grad():
        found = deqlm.diagnose(f, torch.zeros(2, 3))
    assert found.in_place.returns_buffer
    assert not found.in_place.writes_argument
    assert "returns its own buffer" in str(found)


def test_rows_that_mix():
    batch_norm = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())
    found = deqlm.diagnose(deqlm.DEQ(batch_norm), X)
    assert found.cause is Cause.MIXED_ROWS
    assert found.mixing.by_value == (0, 1, 2, 3)
    assert found.mixing.by_nan == (0, 1, 2, 3)
    apart = deqlm.diagnose(deqlm.DEQ(batch_norm).eval(), X)
    assert not apart.mixing.mixes


def test_rows_that_mix_are_solved_as_one_problem():
    found = deqlm.diagnose(lambda z: 0.5 * z + 0.2 * z.mean(0) + 1, torch.zeros(3, 2))
    assert found.cause is Cause.MIXED_ROWS
    assert found.suggestion.options == {"batch_dims": 0}
    assert found.suggestion.worked
    assert found.contraction.rows == (0,)
    assert found.contraction.radius[0] == pytest.approx(0.7, abs=1e-6)


def test_rows_that_mix_by_nan_only():
    def f(z):
        return 0.5 * z + 1 + 0 * z.sum(0, keepdim=True)

    found = deqlm.diagnose(f, torch.zeros(3, 2))
    assert (found.mixing.by_value, found.mixing.by_nan) == ((), (0, 1, 2))


@pytest.mark.parametrize(
    ("f", "causality"),
    [
        (lambda z: 0.3 * torch.tanh(z).cumsum(1) + 1, "causal"),
        (lambda z: 0.3 * torch.tanh(z) + 1, "tokenwise"),
        (lambda z: 0.3 * torch.tanh(z.mean(1, keepdim=True)) + 0.1 * z, "mixing"),
    ],
)
def test_causality(f, causality):
    found = deqlm.diagnose(f, torch.zeros(2, 7, 3))
    assert found.causality == causality
    assert found.tokens == 7
    assert (found.contraction.token_radius is not None) == (causality == "causal")


def test_states_without_tokens_have_no_causality():
    assert deqlm.diagnose(torch.cos, torch.zeros(2, 7)).causality is None


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-8), (torch.float64, 5e-17)])
def test_a_tolerance_below_rounding(dtype, rtol):
    gen = torch.Generator().manual_seed(0)
    A = torch.randn(64, 64, generator=gen, dtype=torch.float64).to(dtype) * 1.5 / 8

    def f(z):
        return torch.tanh(z @ A.T + 0.5)

    found = deqlm.diagnose(f, torch.zeros(2, 64, dtype=dtype), stop=deqlm.Stop(rtol=rtol, max_iter=200))
    assert found.cause is Cause.DTYPE_FLOOR
    eps = torch.finfo(dtype).eps
    assert eps / 4 < found.floor < 20 * eps
    assert found.suggestion.worked


def test_a_solution_of_zero():
    found = deqlm.diagnose(lambda z: 0.9 * z, torch.ones(2, 3), solver="fixed_point")
    assert found.cause is Cause.VANISHING
    assert found.suggestion.options["stop"].atol > 0
    assert found.suggestion.worked


def test_two_basins_are_path_dependent_and_a_contraction_is_not():
    found = deqlm.diagnose(lambda z: torch.tanh(2 * z), torch.full((4, 6), 0.5), solver="fixed_point")
    assert found.cause is Cause.PATH_DEPENDENT
    assert found.path.distance > 1e3
    single = deqlm.diagnose(lambda z: torch.tanh(0.5 * z) + 0.3, torch.full((4, 6), 0.5))
    assert single.healthy
    assert single.path.distance <= 10 * single.path.expected
    assert single.path.converged == single.path.asked == 12


def test_a_backward_solve_that_fails():
    weak = deqlm.Implicit(solve=deqlm.Solve(deqlm.FixedPoint(), deqlm.Stop(max_iter=4, rtol=1e-6)))
    deq = deqlm.DEQ(tanh_layer(), gradient=weak)
    found = deqlm.diagnose(deq, X)
    assert found.cause is Cause.ADJOINT
    assert set(found.adjoint.status) == {"MAX_ITER"}
    assert found.suggestion.worked
    assert deqlm.diagnose(found.suggestion.apply(deq), X).healthy


def test_the_backward_solve_is_that_of_implicit():
    layer = tanh_layer()
    deq = deqlm.DEQ(layer, stop=deqlm.Stop(rtol=1e-6))
    found = deqlm.diagnose(deq, X, probes=Probes(starts=1))
    y, sol = deq(X, with_stats=True)
    (y * torch.randn_like(y)).sum().backward()
    assert found.adjoint.converged
    assert bool(sol.adjoint.converged.all())
    assert abs(max(found.adjoint.steps) - int(sol.adjoint.steps.max())) <= 3
    assert deqlm.diagnose(deqlm.DEQ(layer, gradient="phantom"), X).adjoint is None
