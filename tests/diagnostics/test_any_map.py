"""A diagnosis ends with a report whatever the solver, the magnitude, or the tempers of f."""

from __future__ import annotations

import json

import pytest
import torch

import deqlm
from deqlm import SOLVERS, Stop
from deqlm.diagnostics import Cause, Probes
from diagnostics.layers import Residual

QUICK = Probes(krylov=8, plain=40)
BRIEF = Probes(krylov=8, plain=40, rows=1, starts=1, suggest=False)
MISSING = (ImportError, KeyError)


def told(f, z0, probes=QUICK, **options):
    found = deqlm.diagnose(f, z0, probes=probes, **options)
    assert str(found)
    json.dumps(found.to_dict(), allow_nan=False)
    return found


@pytest.mark.parametrize("solver", [name for name in SOLVERS if "." not in name and name != "deer"])
def test_every_solver(solver):
    healthy = told(lambda z: torch.tanh(0.5 * z + 1), torch.zeros(2, 4), BRIEF, solver=solver)
    assert healthy.converged
    assert healthy.healthy
    torch.manual_seed(0)
    away = told(Residual(torch.nn.Tanh), torch.zeros(2, 16), BRIEF, solver=solver)
    assert away.cause is Cause.RUNAWAY or away.converged
    assert not any(away.passed) or away.cause is not Cause.RUNAWAY
    assert told(lambda z: z + 1, torch.zeros(2, 4), BRIEF, solver=solver).cause is Cause.SINGULAR


def test_a_solution_at_zero_without_a_residual_has_no_error():
    found = told(lambda z: 0.5 * z, torch.zeros(2, 4), solver="anderson")
    assert found.contraction.relative_error == (0.0, 0.0)


@pytest.mark.parametrize("solver", ["anderson", "fixed_point"])
@pytest.mark.parametrize("size", [1e-250, 1e-200, 1e-120, 1e120, 1e200, 1e300])
def test_float64_of_every_magnitude(size, solver):
    found = told(lambda z: 0.5 * z + size, torch.zeros(2, 4, dtype=torch.float64), solver=solver)
    assert found.healthy or found.suggestion.worked
    assert found.contraction.relative_error[0] < 1e-3
    assert found.contraction.lipschitz == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_rows_that_mix_are_found_at_every_magnitude(size):
    z0 = torch.full((3, 2), size, dtype=torch.float64)
    assert told(lambda z: 0.5 * z + 0.2 * z.mean(0) + size, z0).cause is Cause.MIXED_ROWS


@pytest.mark.parametrize("kind", ["every second", "far away", "under grad", "later", "batch of another size"])
def test_a_map_that_raises_in_a_probe(kind):
    calls = []

    def f(z):
        calls.append(1)
        bad = {
            "every second": len(calls) > 6 and len(calls) % 2,
            "far away": float(z.detach().abs().max()) > 3,
            "under grad": z.requires_grad,
            "later": len(calls) > 30,
            "batch of another size": z.shape[0] != 4,
        }[kind]
        if bad:
            raise RuntimeError("not here")
        return 0.5 * z + 1

    found = told(f, torch.zeros(4, 3))
    assert found.cause in (Cause.RAISED, Cause.HEALTHY)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38])
def test_values_that_no_library_may_see(value):
    def f(z):
        return torch.where(z.abs() > 0.5, value, 0.9 * z + 0.2)

    found = told(f, torch.zeros(3, 200))
    assert not found.healthy


def test_no_eigenvalues_are_asked_of_what_is_not_finite():
    from deqlm.diagnostics.diagnosis.krylov import eigenvalue_size

    blocks = torch.zeros(2, 3, 3, dtype=torch.float64)
    blocks[1, 0, 2] = torch.nan
    assert eigenvalue_size(blocks) == torch.inf
    assert eigenvalue_size(torch.eye(3)[None] * 2) == 2


@pytest.mark.parametrize("solver", ["anderson", "broyden", "fixed_point"])
def test_what_is_suggested_where_nothing_helps_is_another_solver(solver):
    found = told(lambda z: z + 1, torch.zeros(1, 4), solver=solver)
    if found.suggestion.options:
        assert found.suggestion.options != {"solver": SOLVERS.make(solver)}


def test_a_suggestion_is_never_the_solve_in_use():
    stop = Stop(rtol=1e-6)
    for solver in (deqlm.FixedPoint(damping=0.5), deqlm.FixedPoint(damping=0.1), deqlm.Anderson(memory=25)):
        found = told(lambda z: torch.sqrt(z - 1), torch.full((2, 3), 1.2), solver=solver, stop=stop)
        options = {} if found.suggestion is None else found.suggestion.options
        assert options.get("solver", None) != solver or options.get("stop", stop) != stop
