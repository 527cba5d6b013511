"""Over shapes, spectra and options: no exception, consistent statuses, and converged means converged."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import normal, spectrum
from deqlm.testing.solvers.truth import true_residuals
from deqlm_solvers import Anderson, Broyden, FixedPoint, Solve, Solver, Status, Stop

DAMPING = st.sampled_from([1.0, 0.8, 0.5, 0.1])
MEMORY = st.integers(1, 15)
SOLVERS: st.SearchStrategy[Solver] = st.one_of(
    st.builds(FixedPoint, damping=DAMPING),
    st.builds(Anderson, memory=MEMORY, damping=DAMPING, ridge=st.sampled_from([None, 0.0, 1e-10, 1e-3])),
    st.builds(
        Broyden,
        memory=MEMORY,
        damping=DAMPING,
        update=st.sampled_from(["good", "bad"]),
        line_search=st.sampled_from([None, "armijo"]),
    ),
)
DTYPES = st.sampled_from([torch.float32, torch.float64])


@st.composite
def maps(draw: Any) -> tuple[Any, torch.Tensor]:
    """Return a linear or tanh map in float64 and a start."""
    B, N = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(["symmetric", "rotation", "non_normal"]))
    rho = draw(st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0, 1.1, 3.0]))
    seed = draw(st.integers(0, 99))
    size = draw(st.sampled_from([0.0, 1e-6, 1.0, 1e6]))
    bounded = draw(st.booleans())
    A, b = spectrum(kind, rho, N, seed), size * normal(seed + 1, B, N)

    def f(z: torch.Tensor) -> torch.Tensor:
        fz = z @ A.to(z).T + b.to(z)
        return torch.tanh(fz) if bounded else fz

    return f, draw(st.sampled_from([0.0, 1.0])) * normal(seed + 2, B, N)


STOPS = st.builds(
    Stop,
    max_iter=st.integers(1, 40),
    rtol=st.sampled_from([1e-2, 1e-5]),
    atol=st.sampled_from([0.0, 1e-4]),
    norm=st.sampled_from(["l2", "rms"]),
    patience=st.sampled_from([None, 1, 5]),
    test_every=st.sampled_from([1, 2, "auto"]),
    trace=st.booleans(),
)


@given(solver=SOLVERS, problem=maps(), stop=STOPS, dtype=DTYPES)
def test_converged_means_converged(solver, problem, stop, dtype):
    f, start = problem
    z0 = start.to(dtype)
    seen = Counted(f)
    sol = Solve(solver, stop)(seen, z0)
    eps = torch.finfo(dtype).eps
    root = z0.shape[1] ** 0.5 if stop.norm == "rms" else 1.0
    residual, size = (t / root for t in true_residuals(f, sol.z))
    rounding = 16 * eps * (size + sol.z.double().norm(dim=1) / root + z0.shape[1])
    limit = stop.atol + stop.rtol * size
    assert sol.z.isfinite().all()
    assert (residual <= limit + rounding)[sol.converged].all()
    assert (sol.residual <= limit + rounding)[sol.converged].all()
    assert (residual >= limit - rounding)[~sol.converged].all() or stop.test_every != 1
    known = sol.residual.isfinite()
    assert ((sol.residual - residual).abs() <= rounding + 1e-3 * residual)[known].all()
    # one look at all answers may come on top, where a row has neighbours
    assert seen.calls == sol.cost.evaluations <= stop.max_iter + (len(z0) > 1)
    assert (sol.steps >= 1).all()
    assert (sol.steps <= seen.calls).all()
    assert (sol.converged != sol.failed).all()
    assert not (sol.status == Status.BUDGET).any()
    assert (sol.steps[sol.status == Status.MAX_ITER] == stop.max_iter).all()
    looks = 0 if sol.trace is None else seen.calls - len(sol.trace)
    assert 0 <= looks <= int(len(z0) > 1)
    assert sol.trace is None or sol.trace.shape[1:] == (len(z0),)
    assert str(sol)


@given(solver=SOLVERS, problem=maps(), steps=st.integers(1, 12), dtype=DTYPES)
def test_a_budget_makes_its_evaluations(solver, problem, steps, dtype):
    f, start = problem
    seen = Counted(f)
    sol = Solve(solver, Stop(max_iter=steps, rtol=0))(seen, start.to(dtype))
    assert seen.calls == sol.cost.evaluations == steps
    assert (sol.steps == steps).all()
    assert ((sol.status == Status.BUDGET) | (sol.status == Status.NONFINITE)).all()
    assert sol.z.isfinite().all()


@given(
    solver=SOLVERS.filter(lambda solver: solver.damping >= 0.5),
    kind=st.sampled_from(["symmetric", "rotation", "non_normal"]),
    N=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_contractions_are_solved(solver, kind, N, seed):
    """rho .5 with room enough: every method and memory finds the dense solution, unless its steps are tiny."""
    A, b = spectrum(kind, 0.5, N, seed), normal(seed + 1, 3, N)
    truth = torch.linalg.solve(torch.eye(N, dtype=torch.float64) - A, b.T).T
    sol = Solve(solver, Stop(max_iter=600, rtol=1e-9))(lambda z: z @ A.T + b, torch.zeros_like(b))
    assert sol.converged.all(), sol.summary()
    inverse = torch.linalg.matrix_norm(torch.linalg.inv(torch.eye(N, dtype=torch.float64) - A), 2)
    assert ((sol.z - truth).norm(dim=1) <= 1e-8 * inverse * truth.norm(dim=1) + 1e-12).all()


@given(solver=SOLVERS, problem=maps(), every=st.sampled_from([0, 2, 7]), patience=st.sampled_from([None, 4]))
def test_check_every_changes_no_bit(solver, problem, every, patience):
    f, start = problem
    stop = Stop(max_iter=25, rtol=1e-5, patience=patience)
    a, b = Solve(solver, stop)(f, start), Solve(solver, stop.replace(check_every=every))(f, start)
    for name in ("z", "residual", "relative", "steps", "status"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
