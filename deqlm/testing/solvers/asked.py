"""What a solver is asked with is obeyed, and left as it is; what f makes of it may be anything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deqlm.testing.check import expect
from deqlm.testing.solvers.length import honours
from deqlm.testing.solvers.problems import Problem, tanh_layer
from deqlm_solvers import Evaluation, Layout, Solution, Solve, Solver, Status, Stop
from deqlm_solvers.loop.criterion import Criterion

__all__ = [
    "a_batch_without_rows_passes",
    "broken_numbers_are_told",
    "declared_fields_of_stop_are_obeyed",
    "the_start_is_left_alone",
]

RTOL = 1e-4
LONG = Stop(max_iter=100, rtol=RTOL)

ASKED: tuple[tuple[Stop, Layout], ...] = (
    (LONG.replace(rtol=0.0, atol=1e-3), Layout()),
    (LONG.replace(atol=1e-2), Layout()),
    (LONG.replace(norm="rms"), Layout()),
    (LONG.replace(norm=(1.0,) * 6 + (0.0,) * 6), Layout()),
    (LONG.replace(per="leaf"), Layout(leaves=((3, 2), (2, 3)))),
    (LONG.replace(per="token"), Layout(leaves=((6, 2),))),
    (LONG.replace(trace=True), Layout()),
)
"""Stops that set one or two fields that a solver may declare, and how rows of 12 unknowns are to be read for them."""


def declared_fields_of_stop_are_obeyed(solver: Solver) -> None:
    """A field of Stop in ``honours`` decides residual and status by its formula, or is refused by ValueError."""
    problem = tanh_layer(0.7)
    for stop, layout in ASKED:
        if honours(solver, stop):
            try:
                sol = Solve(solver, stop)(problem.f, problem.z0(), layout)
            except ValueError:
                continue
            _expect_formula(problem, sol, stop, layout)


def _expect_formula(problem: Problem, sol: Solution, stop: Stop, layout: Layout) -> None:
    read = Criterion(stop, layout, sol.z)(Evaluation(sol.z, problem.f(sol.z)))
    near = torch.allclose(sol.residual, read.residual, rtol=1e-3, atol=1e-10)
    expect(near, "{}: residual {}, by the formula {}", stop, sol.residual, read.residual)
    expect((read.ratio <= 1.001)[sol.converged].all(), "{}: CONVERGED at {} tolerances", stop, read.ratio)
    expect((read.ratio > 0.999)[~sol.converged].all(), "{}: within tolerance, but {}", stop, sol.status)
    if stop.trace:
        shape, rows = () if sol.trace is None else tuple(sol.trace.shape), len(sol.status)
        expect(shape[1:] == (rows,), "{}: a trace of shape {}, not (evaluations, {})", stop, shape, rows)


def the_start_is_left_alone(solver: Solver) -> None:
    """The start is not written and asks for no gradient, and the solution has no graph, whatever f captures."""
    problem = tanh_layer(0.5)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    z0 = 0.1 + problem.z0()
    before = z0.clone()
    sol = Solve(solver, LONG)(lambda z: scale * problem.f(z), z0)
    expect(torch.equal(z0, before), "the start was written: {}", z0)
    expect(not z0.requires_grad and z0.grad is None, "the start was made to ask for a gradient")
    expect(not sol.z.requires_grad, "the solution carries a graph")


def broken_numbers_are_told(solver: Solver) -> None:
    """A row that f makes NaN or infinity of fails, NONFINITE where it never was finite, and nothing raises.

    A solver that tries points and refuses them may end such a row MAX_ITER where f was finite before.
    """
    problem = tanh_layer(0.7)
    for number in (torch.nan, torch.inf):
        for call in (1, 3):
            sol = Solve(solver, LONG)(_spoiled(problem.f, number, call), problem.z0())
            end = Status(int(sol.status[1]))
            told = end.failed if call > 1 else end is Status.NONFINITE
            expect(told, "a row of {} from evaluation {} on ended {}", number, call, end.name)


def _spoiled(f: Callable[[Tensor], Tensor], number: float, call: int) -> Callable[[Tensor], Tensor]:
    """Return f whose second row is ``number`` from the given call on; it is called with all rows."""
    calls = 0

    def g(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        fz = f(z)
        return fz if calls < call else fz.index_fill(0, torch.tensor([1]), number)

    return g


def a_batch_without_rows_passes(solver: Solver) -> None:
    """A batch without rows comes back as it is, with no status."""
    sol = Solve(solver, LONG)(lambda z: 0.5 * z + 1, torch.zeros(0, 4, dtype=torch.float64))
    expect(sol.z.shape == (0, 4), "a start (0, 4) is returned as {}", tuple(sol.z.shape))
    expect(sol.status.shape == (0,), "statuses {} for a start (0, 4)", tuple(sol.status.shape))
