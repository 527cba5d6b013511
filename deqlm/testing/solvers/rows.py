"""Rows keep to themselves, and how often the host looks changes no bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from deqlm.testing.check import expect
from deqlm.testing.solvers.length import honours, refuses
from deqlm.testing.solvers.problems import Problem, exact_rows, linear, normal
from deqlm_solvers import Solution, Solve, Solver, Status, Stop

__all__ = [
    "alone_agrees_with_blas",
    "alone_is_together",
    "assert_same_rows",
    "check_every_is_bit_equal",
    "neighbours_do_not_matter",
    "same_bits",
]

GAIN = torch.tensor([0.3, 0.85, 0.5, 0.93, 0.7], dtype=torch.float64, device="cpu")[:, None]

STOPS = (
    Stop(max_iter=150, rtol=1e-5),
    Stop(max_iter=12, rtol=1e-5),
    Stop(max_iter=9, rtol=0),
    Stop(max_iter=150, rtol=1e-5, test_every="auto"),
    Stop(max_iter=150, rtol=1e-5, test_every=3),
    Stop(max_iter=150, rtol=1e-6, patience=5),
)

PLAIN = Stop(max_iter=60, rtol=1e-5)
LOOKED_AT = (PLAIN, PLAIN.replace(test_every=2), PLAIN.replace(patience=4), PLAIN.replace(trace=True))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors agree to the bit, NaN at the same places included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def assert_same_rows(one: Solution, rows_one: Any, other: Solution, rows_other: Any) -> None:
    """Every field of the given rows must agree to the bit."""
    for name in ("z", "residual", "relative", "steps", "status"):
        a, b = getattr(one, name)[rows_one], getattr(other, name)[rows_other]
        expect(same_bits(a, b), "{} differs: {} and {}", name, a, b)


def neighbours_do_not_matter(solver: Solver) -> None:
    """At fixed batch size and position, other rows may change or break and a row keeps its bits."""
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


def alone_is_together(solver: Solver) -> None:
    """Where f has the same bits in any batch, a row solved alone has the bits it has in a batch."""
    for B, N, most in ((5, 9, None), (7, 1, 2), (3, 67, 2), (2, 200, 2)):
        b, gain = _neighbours(B, N)
        for dtype, stop in islice(_settings(solver, unknowns=N), most):
            together = Solve(solver, stop)(exact_rows(b, gain), torch.zeros(B, N, dtype=dtype))
            for i in range(B):
                f = exact_rows(b[i : i + 1], gain[i : i + 1])
                alone = Solve(solver, stop)(f, torch.zeros(1, N, dtype=dtype))
                assert_same_rows(together, slice(i, i + 1), alone, slice(0, 1))


def alone_agrees_with_blas(solver: Solver) -> None:
    """Where f uses BLAS, alone and together agree in status and, where they converge, within tolerance.

    That they converge is asked of "known_answers" only.
    """
    rtol = 1e-5
    stop = Stop(max_iter=300, rtol=rtol)
    for kind in ("symmetric", "non_normal", "rotation"):
        problem = linear(kind, 0.8, B=6, N=33)
        A, b = spectrum_of(problem), problem.f(problem.z0())
        together = Solve(solver, stop)(problem.f, problem.z0(torch.float32))
        for i in range(6):
            alone = Solve(solver, stop)(_single(A, b[i : i + 1]), torch.zeros(1, 33))
            _same_end(problem, i, alone, together, converges="known_answers" in solver.guarantees)
            if alone.status[0] == Status.CONVERGED:
                _same_answer(problem, i, alone, together, rtol)


def check_every_is_bit_equal(solver: Solver) -> None:
    """How often the host looks changes time, never a bit."""
    b, gain = _neighbours(5, 9)
    f = exact_rows(b, gain)
    single = [(torch.float32, stop) for stop in LOOKED_AT if honours(solver, stop)]
    for dtype, stop in (*single, (torch.float64, PLAIN)):
        z0 = torch.zeros(b.shape, dtype=dtype)
        plain = Solve(solver, stop)(f, z0)
        for every in (0, 3, 7, 1000):
            other = Solve(solver, stop.replace(check_every=every))(f, z0)
            assert_same_rows(plain, slice(None), other, slice(None))
            if plain.trace is not None and other.trace is not None:
                same = same_bits(other.trace[: len(plain.trace)], plain.trace)
                expect(same, "trace differs at check_every={}", every)


def _neighbours(B: int, N: int) -> tuple[Tensor, Tensor]:
    return normal(1, B, N), GAIN[torch.arange(B) % len(GAIN)]


def _stops(solver: Solver, unknowns: int) -> Iterator[Stop]:
    """Yield what the checks of rows run: what the solver declares, and nothing too short for so many unknowns."""
    for stop in STOPS:
        declared = honours(solver, stop) and (not stop.is_budget or "budget" in solver.guarantees)
        if declared and not refuses(solver, stop, unknowns):
            yield stop


def _settings(solver: Solver, unknowns: int) -> Iterator[tuple[torch.dtype, Stop]]:
    """Yield what `_stops` does, the first one in float32 and float64, the others in one of them by turns."""
    dtypes = (torch.float32, torch.float64)
    for i, stop in enumerate(_stops(solver, unknowns)):
        for dtype in dtypes[i % 2 :][:1] if i else dtypes:
            yield dtype, stop


def _nan_later(f: Callable[[Tensor], Tensor], rows: Tensor, call: int = 4) -> Callable[[Tensor], Tensor]:
    calls = 0

    def spoiled(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        fz = f(z)
        return fz.index_fill(0, rows, torch.nan) if calls == call else fz

    return spoiled


def _same_end(problem: Problem, i: int, alone: Solution, together: Solution, converges: bool) -> None:
    ends = Status(int(alone.status[0])), Status(int(together.status[i]))
    names = [end.name for end in ends]
    expect(ends[0] == ends[1], "{}, row {}: {} alone, {} together", problem.name, i, *names)
    expect(not converges or ends[0] == Status.CONVERGED, "{}, row {}: {}", problem.name, i, names[0])


def _same_answer(problem: Problem, i: int, alone: Solution, together: Solution, rtol: float) -> None:
    size = problem.truth[i].norm()
    for sol, row in ((together, i), (alone, 0)):
        expect(sol.residual[row] <= 1.01 * rtol * size, "{}: CONVERGED with {}", problem.name, sol.residual[row])
    distance = (alone.z[0] - together.z[i]).double().norm()
    expect(distance <= 4 * rtol * size * problem.kappa, "{}: alone and together are {} apart", problem.name, distance)


def _single(A: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: z @ A.to(z).T + b.to(z)


def spectrum_of(problem: Problem) -> Tensor:
    """Return A of a linear problem, by applying it to the identity."""
    N = problem.truth.shape[1]
    eye = torch.eye(N, dtype=torch.float64)
    origin = problem.f(problem.z0())[:1]
    rows = [problem.f(e.expand(problem.truth.shape))[:1] - origin for e in eye]
    return torch.cat(rows).T
