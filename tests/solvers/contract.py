"""What a solver must do: two checks of every solver, and those of each guarantee that it declares.

A check takes a solver and raises AssertionError. `cases` lists what applies to every entry of a registry, so a solver
is tested by being registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from deqlm_solvers import GUARANTEES, Frame, Solution, Solve, Solver, Status, StepSolver, Stop
from deqlm_solvers.loop.loop import run
from solvers.counting import Counted, geometric, per_evaluation
from solvers.problems import Problem, contractions, exact_rows, linear, normal, tanh_layer

Check = Callable[[Solver], None]

RTOL = {torch.float32: 1e-6, torch.float64: 1e-12}
SMALLEST_ERROR = {torch.float32: 1e-5, torch.float64: 1e-10}
GAIN = torch.tensor([0.3, 0.85, 0.5, 0.93, 0.7], dtype=torch.float64)[:, None]

OPERATIONS = {"fixed_point": 50, "anderson": 227, "broyden": 168}
"""Measured: ATen operations per evaluation of the map, those of f and views left out, CPU, Stop(test_every=1)."""


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def assert_same_rows(one: Solution, rows_one: Any, other: Solution, rows_other: Any) -> None:
    """Every field of the given rows must agree to the bit."""
    for name in ("z", "residual", "relative", "steps", "status"):
        a, b = getattr(one, name)[rows_one], getattr(other, name)[rows_other]
        assert same_bits(a, b), f"{name} differs: {a} and {b}"


def true_residuals(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Return ||f(z) - z|| and ||f(z)|| of rows, evaluated in float64."""
    z = z.double()
    fz = f(z)
    return (fz - z).norm(dim=1), fz.norm(dim=1)


def assert_true_residual(problem: Problem, sol: Solution, rtol: float) -> None:
    """The reported residual is that of the returned point, and decides the status."""
    eps = torch.finfo(sol.z.dtype).eps
    true, size = true_residuals(problem.f, sol.z)
    rounding = 8 * eps * (size + sol.z.double().norm(dim=1) + sol.z.shape[1] ** 0.5)
    assert sol.residual_of == "z"
    assert sol.residual.dtype == torch.float64
    assert sol.z.isfinite().all()
    wrong = (true - sol.residual).abs() > rounding + 1e-3 * true
    assert not wrong.any(), f"{problem.name}: reported {sol.residual}, true {true}"
    passing = sol.residual <= rtol * size + rounding
    assert passing[sol.converged].all(), f"{problem.name}: CONVERGED with {sol.residual}"
    failing = sol.residual > rtol * size - rounding
    assert failing[~sol.converged].all(), f"{problem.name}: within tolerance, but {sol.status}"
    assert (sol.steps >= 1).all()
    assert (sol.steps <= sol.cost.evaluations + sol.cost.jvps).all()


def _lengths(solver: Solver, rtol: float) -> Iterator[Stop]:
    """Yield short and long solves; only a solver with a `solve` of its own may refuse what is too short for it."""
    may_refuse = type(solver).solve is not StepSolver.solve
    for max_iter in (1, 2, 7, 60):
        stop = Stop(max_iter=max_iter, rtol=rtol)
        if max_iter == 60 or not (may_refuse and _refuses(solver, stop, unknowns=12)):
            yield stop


def _refuses(solver: Solver, stop: Stop, unknowns: int) -> bool:
    """Say whether ``stop.max_iter`` is too small for a solve of that many unknowns."""
    try:
        Solve(solver, stop)(lambda z: 0.5 * z + 1, torch.zeros(1, unknowns, dtype=torch.float64))
    except ValueError as refusal:
        return str(refusal).startswith("max_iter must be")
    return False


def true_residual(solver: Solver) -> None:
    """The reported residual is the true one, solved or not, in float32 and float64."""
    problems = [*contractions(), linear("symmetric", 1.1), linear("non_normal", 2.0), tanh_layer(3.0)]
    for problem in problems:
        for dtype, rtol in ((torch.float32, 1e-4), (torch.float64, 1e-8)):
            for stop in _lengths(solver, rtol):
                sol = Solve(solver, stop)(problem.f, problem.z0(dtype))
                assert sol.z.dtype == dtype
                assert_true_residual(problem, sol, rtol)


def true_counts(solver: Solver) -> None:
    """Reported evaluations are the calls of f, and max_iter is never exceeded by an attempt.

    One look at all answers may come on top, but not for a single row, which has no neighbour to look at.
    """
    for stop in _lengths(solver, 1e-4):
        f = Counted(linear("symmetric", 1.1, B=1).f)
        Solve(solver, stop)(f, torch.zeros(1, 12))
        assert f.calls <= solver.attempts * stop.max_iter, f"{f.calls} calls made for max_iter={stop.max_iter}"
    for problem in (linear("symmetric", 0.9), linear("symmetric", 1.1), tanh_layer(3.0)):
        for stop in _lengths(solver, 1e-4):
            f = Counted(problem.f)
            sol = Solve(solver, stop)(f, problem.z0(torch.float32))
            assert sol.cost.evaluations == f.calls, f"{sol.cost} reported, {f.calls} calls made"
            assert sol.cost.row_evaluations == f.rows
            assert 1 <= f.calls <= solver.attempts * stop.max_iter + 1, "one look at all answers may come on top"


def known_answers(solver: Solver) -> None:
    """Linear and tanh contractions are solved to the dense float64 truth."""
    for problem in contractions():
        for dtype, rtol in RTOL.items():
            sol = Solve(solver, Stop(max_iter=500, rtol=rtol))(problem.f, problem.z0(dtype))
            assert sol.converged.all(), f"{problem.name} in {dtype}: {sol}"
            error = (sol.z.double() - problem.truth).norm(dim=1) / problem.truth.norm(dim=1)
            assert (error <= max(problem.kappa, 1) * SMALLEST_ERROR[dtype]).all(), f"{problem.name}: {error}"


def _neighbours(B: int, N: int) -> tuple[Tensor, Tensor]:
    return normal(1, B, N), GAIN[torch.arange(B) % len(GAIN)]


STOPS = (
    Stop(max_iter=150, rtol=1e-5),
    Stop(max_iter=12, rtol=1e-5),
    Stop(max_iter=9, rtol=0),
    Stop(max_iter=150, rtol=1e-5, test_every="auto"),
    Stop(max_iter=150, rtol=1e-5, test_every=3),
    Stop(max_iter=150, rtol=1e-6, patience=5),
)


def _stops(solver: Solver, unknowns: int) -> Iterator[Stop]:
    """Yield what the checks of rows run: no budget where none is declared, nothing too short for so many unknowns."""
    for stop in STOPS:
        if (not stop.is_budget or "budget" in solver.guarantees) and not _refuses(solver, stop, unknowns):
            yield stop


def _settings(solver: Solver, unknowns: int) -> Iterator[tuple[torch.dtype, Stop]]:
    """Yield what `_stops` does, the first one in float32 and float64, the others in one of them by turns."""
    dtypes = list(RTOL)
    for i, stop in enumerate(_stops(solver, unknowns)):
        for dtype in dtypes[i % 2 :][:1] if i else dtypes:
            yield dtype, stop


def neighbours_do_not_matter(solver: Solver) -> None:
    """At fixed batch size and position, other rows may change or break and a row keeps its bits (numerics 7a)."""
    b, gain = _neighbours(5, 9)
    keep = torch.tensor([1, 3])
    others = torch.tensor([0, 2, 4])
    spoiled = {
        "other numbers": lambda t: t.index_copy(0, others, 3 * t[others] + 1),
        "zeros": lambda t: t.index_fill(0, others, 0.0),
        "NaN": lambda t: t.index_fill(0, others, torch.nan),
        "infinity": lambda t: t.index_fill(0, others, torch.inf),
        "huge": lambda t: t.index_fill(0, others, 1e30),
    }
    expanding = gain.index_fill(0, others, 50.0)
    for dtype, stop in _settings(solver, unknowns=9):
        start = torch.zeros(b.shape, dtype=dtype)
        plain = Solve(solver, stop)(exact_rows(b, gain), start)
        maps = [exact_rows(change(b), gain) for change in spoiled.values()]
        for f in (*maps, exact_rows(b, expanding), _nan_later(exact_rows(b, gain), others)):
            assert_same_rows(plain, keep, Solve(solver, stop)(f, start), keep)


def _nan_later(f: Callable[[Tensor], Tensor], rows: Tensor, call: int = 4) -> Callable[[Tensor], Tensor]:
    calls = 0

    def spoiled(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        fz = f(z)
        return fz.index_fill(0, rows, torch.nan) if calls == call else fz

    return spoiled


def alone_is_together(solver: Solver) -> None:
    """Where f has the same bits in any batch, a row solved alone has the bits it has in a batch (numerics 7b)."""
    for B, N, most in ((5, 9, None), (7, 1, 2), (3, 67, 2), (2, 200, 2)):
        b, gain = _neighbours(B, N)
        for dtype, stop in islice(_settings(solver, unknowns=N), most):
            together = Solve(solver, stop)(exact_rows(b, gain), torch.zeros(B, N, dtype=dtype))
            for i in range(B):
                f = exact_rows(b[i : i + 1], gain[i : i + 1])
                alone = Solve(solver, stop)(f, torch.zeros(1, N, dtype=dtype))
                assert_same_rows(together, slice(i, i + 1), alone, slice(0, 1))


def alone_agrees_with_blas(solver: Solver) -> None:
    """Where f uses BLAS, alone and together agree in status and within tolerance (numerics 7c)."""
    rtol = 1e-5
    stop = Stop(max_iter=300, rtol=rtol)
    for kind in ("symmetric", "non_normal", "rotation"):
        problem = linear(kind, 0.8, B=6, N=33)
        A, b = spectrum_of(problem), problem.f(problem.z0())
        together = Solve(solver, stop)(problem.f, problem.z0(torch.float32))
        for i in range(6):
            alone = Solve(solver, stop)(_single(A, b[i : i + 1]), torch.zeros(1, 33))
            assert alone.status[0] == together.status[i] == Status.CONVERGED
            size = problem.truth[i].norm()
            for sol, row in ((together, i), (alone, 0)):
                assert sol.residual[row] <= 1.01 * rtol * size
            distance = (alone.z[0] - together.z[i]).double().norm()
            assert distance <= 4 * rtol * size * problem.kappa


def _single(A: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: z @ A.to(z).T + b.to(z)


def spectrum_of(problem: Problem) -> Tensor:
    """Return A of a linear problem, by applying it to the identity."""
    N = problem.truth.shape[1]
    eye = torch.eye(N, dtype=torch.float64)
    origin = problem.f(problem.z0())[:1]
    rows = [problem.f(e.expand(problem.truth.shape))[:1] - origin for e in eye]
    return torch.cat(rows).T


def check_every_is_bit_equal(solver: Solver) -> None:
    """How often the host looks changes time, never a bit."""
    b, gain = _neighbours(5, 9)
    f = exact_rows(b, gain)
    single = [(torch.float32, more) for more in ({}, {"test_every": 2}, {"patience": 4}, {"trace": True})]
    for dtype, more in (*single, (torch.float64, {})):
        z0 = torch.zeros(b.shape, dtype=dtype)
        stop = Stop(max_iter=60, rtol=1e-5, **more)
        plain = Solve(solver, stop)(f, z0)
        for every in (0, 3, 7, 1000):
            other = Solve(solver, stop.replace(check_every=every))(f, z0)
            assert_same_rows(plain, slice(None), other, slice(None))
            if plain.trace is not None and other.trace is not None:
                assert same_bits(other.trace[: len(plain.trace)], plain.trace)


def half_states(solver: Solver) -> None:
    """bfloat16 and float16 states are solved to what they resolve, and the residual is that of the state returned."""
    for dtype in (torch.bfloat16, torch.float16):
        rtol = 4 * torch.finfo(dtype).eps
        for problem in (linear("symmetric", 0.5), tanh_layer(0.5)):
            seen = Counted(problem.f)
            sol = Solve(solver, Stop(max_iter=60, rtol=rtol))(seen, problem.z0(dtype))
            assert sol.z.dtype == dtype
            assert {p.dtype for p in seen.points} == {dtype}
            assert sol.converged.all(), f"{problem.name} in {dtype}: {sol}"
            z, fz = sol.z.double(), problem.f(sol.z).double()
            true = (fz - z).norm(dim=1)
            assert torch.allclose(true, sol.residual, rtol=1e-3, atol=1e-12), f"reported {sol.residual}, true {true}"
            assert ((z - problem.truth).norm(dim=1) <= 2 * problem.kappa * (problem.tolerance(2 * rtol))).all()


def budget(solver: Solver) -> None:
    """rtol=0, atol=0: K evaluations and steps, z_K is returned with the residual of z_{K-1}, nothing is a failure."""
    for problem in (linear("symmetric", 0.5), linear("symmetric", 1.1), tanh_layer(3.0)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for K in (1, 2, 6):
                f = Counted(problem.f)
                sol = Solve(solver, Stop(max_iter=K, rtol=0, atol=0))(f, problem.z0(dtype))
                assert f.calls == sol.cost.evaluations == K
                longer = Counted(problem.f)
                Solve(solver, Stop(max_iter=K + 1, rtol=0, atol=0))(longer, problem.z0(dtype))
                assert longer.calls == K + 1
                assert (sol.steps == K).all()
                assert (sol.status == Status.BUDGET).all()
                assert not sol.failed.any()
                assert sol.residual_of == "previous"
                assert same_bits(sol.z, longer.points[K]), "z is not the point of the next evaluation"
                last = f.points[-1]
                true = (problem.f(last).double() - last.double()).norm(dim=1)
                eps = torch.finfo(torch.float32 if dtype == torch.bfloat16 else dtype).eps
                assert torch.allclose(sol.residual, true, rtol=64 * eps, atol=64 * eps)


def budget_does_not_read_the_device(solver: Solver) -> None:
    """A budget makes no host sync at all."""
    frames = geometric(0.9, 4, 16, 20)
    z0 = torch.zeros(4, 16)
    _, syncs = per_evaluation(lambda f, K: Solve(solver, Stop(max_iter=K, rtol=0))(f, z0), frames)
    assert syncs == 0


def lean(solver: Solver) -> None:
    """Operations and host syncs per evaluation stay within what was measured."""
    frames = geometric(0.98, 4, 16, 60)
    z0 = torch.zeros(4, 16)
    stop = Stop(rtol=0, atol=1e-300)
    most = OPERATIONS.get(solver.name, max(OPERATIONS.values()))
    operations, syncs = per_evaluation(lambda f, K: Solve(solver, stop.replace(max_iter=K))(f, z0), frames)
    assert operations <= most, f"{operations} operations per evaluation, at most {most}"
    assert syncs <= 1, f"{syncs} host syncs per evaluation"
    _, rare = per_evaluation(lambda f, K: Solve(solver, stop.replace(max_iter=K, check_every=10))(f, z0), frames)
    assert rare <= 0.1, f"{rare} host syncs per evaluation at check_every=10"


def differentiable(solver: Solver) -> None:
    """Autograd through the steps gives the derivative of the last point."""
    assert isinstance(solver, StepSolver), "only step solvers can be differentiated"
    problem = tanh_layer(0.9, B=2, N=3)
    stop = Stop(max_iter=5, rtol=0)

    def last_point(u: Tensor) -> Tensor:
        return run(solver, lambda z: problem.f(z) + u, problem.z0(), stop, Frame(), graph=True).z

    u = (0.1 * normal(3, 2, 3)).requires_grad_()
    assert last_point(u).requires_grad, "the steps are cut from the graph"
    assert torch.autograd.gradcheck(last_point, (u,))


ALWAYS: tuple[Check, ...] = (true_residual, true_counts)
CHECKS: dict[str, tuple[Check, ...]] = {
    "known_answers": (known_answers,),
    "rows": (neighbours_do_not_matter, alone_is_together, alone_agrees_with_blas),
    "check_every": (check_every_is_bit_equal,),
    "half": (half_states,),
    "budget": (budget, budget_does_not_read_the_device),
    "lean": (lean,),
    "differentiable": (differentiable,),
}
assert CHECKS.keys() == GUARANTEES.keys(), "every guarantee has its checks"


def checks_of(cls: type[Solver]) -> list[Check]:
    """Return what a class of solver is held to."""
    return [*ALWAYS, *(check for name in sorted(cls.guarantees) for check in CHECKS[name])]


def realisations(cls: type[Solver]) -> list[dict[str, str]]:
    """Return the options with which a class is tested: as it comes, and on torch operations where it has a choice."""
    return [{}, {"impl": "torch"}] if "impl" in cls.__dataclass_fields__ else [{}]


def cases(registry: Iterable[str], lookup: Callable[[str], type[Solver]]) -> list[Any]:
    """Return pytest parameters (name, check, options) of every entry; entries that cannot be loaded become skips."""
    found = []
    for name in registry:
        try:
            checks = checks_of(lookup(name))
        except ImportError as error:
            found.append(pytest.param(name, None, {}, marks=pytest.mark.skip(reason=str(error)), id=name))
        else:
            for fields in realisations(lookup(name)):
                label = "-".join((name, *fields.values()))
                found += [pytest.param(name, check, fields, id=f"{label}-{check.__name__}") for check in checks]
    return found
