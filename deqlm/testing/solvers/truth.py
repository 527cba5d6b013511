"""What a solver reports is true, and the answers are the known ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from deqlm.testing.check import expect
from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.length import lengths
from deqlm.testing.solvers.problems import Problem, contractions, linear, tanh_layer
from deqlm_solvers import GUARANTEES, Solution, Solve, Solver, Stop

__all__ = ["declarations", "half_states", "known_answers", "true_counts", "true_residual", "true_residuals"]

RTOL = {torch.float32: 1e-6, torch.float64: 1e-12}
SMALLEST_ERROR = {torch.float32: 1e-5, torch.float64: 1e-10}


def declarations(solver: Solver) -> None:
    """The class is a frozen dataclass of options, and declares guarantees and fields of Stop that exist."""
    cls = type(solver)
    expect("__dataclass_fields__" in cls.__dict__, "no dataclass: write @options above class {}", cls.__name__)
    for name, known in (("guarantees", GUARANTEES), ("honours", [field.name for field in fields(Stop)])):
        unknown = sorted(set(getattr(cls, name)) - set(known))
        expect(not unknown, "{} has {}; known: {}", name, unknown, ", ".join(known))


def true_residuals(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Return ||f(z) - z|| and ||f(z)|| of rows, evaluated in float64."""
    z = z.double()
    fz = f(z)
    return (fz - z).norm(dim=1), fz.norm(dim=1)


def true_residual(solver: Solver) -> None:
    """The reported residual is that of the returned point and decides the status, in float32 and float64."""
    problems = [*contractions(), linear("symmetric", 1.1), linear("non_normal", 2.0), tanh_layer(3.0)]
    for problem in problems:
        for dtype, rtol in ((torch.float32, 1e-4), (torch.float64, 1e-8)):
            for stop in lengths(solver, rtol):
                sol = Solve(solver, stop)(problem.f, problem.z0(dtype))
                expect(sol.z.dtype == dtype, "a state in {} is returned in {}", dtype, sol.z.dtype)
                _expect_true_residual(problem, sol, rtol)


def _expect_true_residual(problem: Problem, sol: Solution, rtol: float) -> None:
    eps = torch.finfo(sol.z.dtype).eps
    true, size = true_residuals(problem.f, sol.z)
    rounding = 8 * eps * (size + sol.z.double().norm(dim=1) + sol.z.shape[1] ** 0.5)
    expect(sol.residual_of == "z", "residual_of is {!r}", sol.residual_of)
    expect(sol.residual.dtype == torch.float64, "the residual is in {}", sol.residual.dtype)
    expect(sol.z.isfinite().all(), "{}: z is not finite", problem.name)
    wrong = (true - sol.residual).abs() > rounding + 1e-3 * true
    expect(not wrong.any(), "{}: reported {}, true {}", problem.name, sol.residual, true)
    passing = sol.residual <= rtol * size + rounding
    expect(passing[sol.converged].all(), "{}: CONVERGED with {}", problem.name, sol.residual)
    failing = sol.residual > rtol * size - rounding
    expect(failing[~sol.converged].all(), "{}: within tolerance, but {}", problem.name, sol.status)
    expect((sol.steps >= 1).all(), "{}: steps {}", problem.name, sol.steps)
    paid = sol.cost.evaluations + sol.cost.jvps
    expect((sol.steps <= paid).all(), "{}: steps {}, more than the {} evaluations", problem.name, sol.steps, paid)


def true_counts(solver: Solver) -> None:
    """Reported evaluations are the calls of f, and max_iter is never exceeded by an attempt.

    One look at all answers may come on top, but not for a single row, which has no neighbour to look at.
    """
    for stop in lengths(solver, 1e-4):
        f = Counted(linear("symmetric", 1.1, B=1).f)
        Solve(solver, stop)(f, torch.zeros(1, 12))
        expect(f.calls <= solver.attempts * stop.max_iter, "{} calls made for max_iter={}", f.calls, stop.max_iter)
    for problem in (linear("symmetric", 0.9), linear("symmetric", 1.1), tanh_layer(3.0)):
        for stop in lengths(solver, 1e-4):
            f = Counted(problem.f)
            sol = Solve(solver, stop)(f, problem.z0(torch.float32))
            _expect_true_counts(sol, f, solver.attempts * stop.max_iter + 1)


def _expect_true_counts(sol: Solution, f: Counted, most: int) -> None:
    expect(sol.cost.evaluations == f.calls, "{} reported, {} calls made", sol.cost, f.calls)
    expect(sol.cost.row_evaluations == f.rows, "{} reported, {} rows given", sol.cost, f.rows)
    expect(1 <= f.calls <= most, "{} calls made, at most {} with the look at all answers", f.calls, most)


def known_answers(solver: Solver) -> None:
    """Linear and tanh contractions are solved to the dense float64 truth."""
    for problem in contractions():
        for dtype, rtol in RTOL.items():
            sol = Solve(solver, Stop(max_iter=500, rtol=rtol))(problem.f, problem.z0(dtype))
            expect(sol.converged.all(), "{} in {}: {}", problem.name, dtype, sol)
            error = (sol.z.double() - problem.truth).norm(dim=1) / problem.truth.norm(dim=1)
            most = max(problem.kappa, 1) * SMALLEST_ERROR[dtype]
            expect((error <= most).all(), "{} in {}: error {}, at most {}", problem.name, dtype, error, most)


def half_states(solver: Solver) -> None:
    """bfloat16 and float16 states stay what they are, and the residual is that of the state returned.

    With "known_answers" they are solved to what they resolve.
    """
    for dtype in (torch.bfloat16, torch.float16):
        rtol = 4 * torch.finfo(dtype).eps
        for problem in (linear("symmetric", 0.5), tanh_layer(0.5)):
            seen = Counted(problem.f)
            sol = Solve(solver, Stop(max_iter=60, rtol=rtol))(seen, problem.z0(dtype))
            expect(sol.z.dtype == dtype, "a state in {} is returned in {}", dtype, sol.z.dtype)
            dtypes = {point.dtype for point in seen.points}
            expect(dtypes == {dtype}, "f was given {} for a state in {}", dtypes, dtype)
            _expect_half_truth(problem, sol, rtol, solved="known_answers" in solver.guarantees)


def _expect_half_truth(problem: Problem, sol: Solution, rtol: float, solved: bool) -> None:
    z, fz = sol.z.double(), problem.f(sol.z).double()
    true = (fz - z).norm(dim=1)
    same = torch.allclose(true, sol.residual, rtol=1e-3, atol=1e-12)
    expect(same, "{} in {}: reported {}, true {}", problem.name, sol.z.dtype, sol.residual, true)
    if solved:
        expect(sol.converged.all(), "{} in {}: {}", problem.name, sol.z.dtype, sol)
    distance, most = (z - problem.truth).norm(dim=1), 2 * problem.kappa * problem.tolerance(2 * rtol)
    near = (distance <= most)[sol.converged].all()
    expect(near, "{} in {}: {} from the truth, at most {}", problem.name, sol.z.dtype, distance, most)
