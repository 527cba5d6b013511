"""What a solve costs: budgets, operations, reads by the host; and the graph of the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm.testing.check import expect
from deqlm.testing.solvers.counting import Counted, geometric, per_evaluation
from deqlm.testing.solvers.problems import Problem, linear, normal, tanh_layer
from deqlm.testing.solvers.rows import same_bits
from deqlm_solvers import Layout, Solution, Solve, Solver, Status, StepSolver, Stop
from deqlm_solvers.loop.loop import run

__all__ = ["OPERATIONS", "budget", "budget_does_not_read_the_device", "differentiable", "lean"]

OPERATIONS = {"fixed_point": 50, "anderson": 227, "broyden": 168}
"""Measured: ATen operations per evaluation of the map, those of f and views left out, CPU, Stop(test_every=1)."""


def budget(solver: Solver) -> None:
    """rtol=0, atol=0: K evaluations and steps, z_K is returned with the residual of z_{K-1}, nothing is a failure."""
    for problem in (linear("symmetric", 0.5), linear("symmetric", 1.1), tanh_layer(3.0)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for K in (1, 2, 6):
                _expect_budget(solver, problem, dtype, K)


def _expect_budget(solver: Solver, problem: Problem, dtype: torch.dtype, K: int) -> None:
    f, longer = Counted(problem.f), Counted(problem.f)
    sol = Solve(solver, Stop(max_iter=K, rtol=0, atol=0))(f, problem.z0(dtype))
    Solve(solver, Stop(max_iter=K + 1, rtol=0, atol=0))(longer, problem.z0(dtype))
    expect(f.calls == sol.cost.evaluations == K, "{} calls, {} reported, for K={}", f.calls, sol.cost, K)
    expect(longer.calls == K + 1, "{} calls for K={}", longer.calls, K + 1)
    expect((sol.steps == K).all(), "steps {} for K={}", sol.steps, K)
    expect((sol.status == Status.BUDGET).all(), "status {}", sol.status)
    expect(not sol.failed.any(), "failed rows: {}", sol.failed)
    expect(sol.residual_of == "previous", "residual_of is {!r}", sol.residual_of)
    expect(same_bits(sol.z, longer.points[K]), "z is not the point of the next evaluation")
    _expect_last_residual(problem, sol, f.points[-1])


def _expect_last_residual(problem: Problem, sol: Solution, last: Tensor) -> None:
    true = (problem.f(last).double() - last.double()).norm(dim=1)
    eps = torch.finfo(torch.float32 if last.dtype == torch.bfloat16 else last.dtype).eps
    near = torch.allclose(sol.residual, true, rtol=64 * eps, atol=64 * eps)
    expect(near, "{}: residual {}, that of the point before is {}", problem.name, sol.residual, true)


def budget_does_not_read_the_device(solver: Solver) -> None:
    """A budget makes no host sync at all."""
    frames = geometric(0.9, 4, 16, 20)
    z0 = torch.zeros(4, 16)
    _, syncs = per_evaluation(lambda f, K: Solve(solver, Stop(max_iter=K, rtol=0))(f, z0), frames)
    expect(syncs == 0, "{} host syncs per evaluation", syncs)


def lean(solver: Solver) -> None:
    """Operations and host syncs per evaluation stay within what was measured."""
    frames = geometric(0.98, 4, 16, 60)
    z0 = torch.zeros(4, 16)
    stop = Stop(rtol=0, atol=1e-300)
    most = OPERATIONS.get(solver.name, max(OPERATIONS.values()))
    operations, syncs = per_evaluation(lambda f, K: Solve(solver, stop.replace(max_iter=K))(f, z0), frames)
    expect(operations <= most, "{} operations per evaluation, at most {}", operations, most)
    expect(syncs <= 1, "{} host syncs per evaluation, at most 1", syncs)
    _, rare = per_evaluation(lambda f, K: Solve(solver, stop.replace(max_iter=K, check_every=10))(f, z0), frames)
    expect(rare <= 0.1, "{} host syncs per evaluation at check_every=10", rare)


def differentiable(solver: Solver) -> None:
    """Autograd through the steps gives the derivative of the last point."""
    if not isinstance(solver, StepSolver):
        raise AssertionError(f"only step solvers can be differentiated, {type(solver).__name__} is none")
    problem = tanh_layer(0.9, B=2, N=3)
    stop = Stop(max_iter=5, rtol=0)

    def last_point(u: Tensor) -> Tensor:
        return run(solver, lambda z: problem.f(z) + u, problem.z0(), stop, Layout(), graph=True).z

    u = (0.1 * normal(3, 2, 3)).requires_grad_()
    expect(last_point(u).requires_grad, "the steps are cut from the graph")
    expect(torch.autograd.gradcheck(last_point, (u,)), "gradcheck fails")
