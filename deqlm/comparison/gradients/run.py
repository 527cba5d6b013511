"""Compare gradient methods with the exact gradient of the fixed point."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack

from torch import Tensor

from deqlm.comparison.gradients.result import GradientComparison, GradientEntry, GradientProblem
from deqlm.comparison.gradients.subject import GradientSubject
from deqlm.comparison.problem import Problem
from deqlm.comparison.problems import DIFFERENTIABLE
from deqlm.comparison.problems.named import to_problem
from deqlm.comparison.run import Each, compare_on_all, one_line
from deqlm.comparison.settings import Settings, SettingsOptions
from deqlm.comparison.spec import to_list, to_rows
from deqlm.gradients import GRADIENTS, Gradient
from deqlm.reporting.progress import Progress
from deqlm_solvers import Solve, Status, Stop

__all__ = ["compare_gradients"]

FORWARD = ("anderson", "fixed_point", "reversible")
"""Forward solvers, the first that a method can differentiate is used."""

NO_TRUTH = (
    "no fixed point found to 1e-12 in float64: "
    "f must run in float64 (return an nn.Module) and be deterministic (.eval())"
)
"""Message where no exact gradient exists to compare with."""


def compare_gradients(
    problems: Iterable[str | Problem | Callable[..., Any]] | str | Problem | Callable[..., Any] | None = None,
    gradients: Iterable[str | Mapping[str, Any] | Gradient] | str | Mapping[str, Any] | Gradient | None = None,
    *,
    each: Each | None = None,
    **settings: Unpack[SettingsOptions],
) -> GradientComparison:
    """Compare gradient methods with the exact gradient, a dense float64 solve with I - J^T at a polished fixed point.

    The loss is a fixed random linear function of the fixed point; the gradient is that of all parameters of f together,
    or, where f has none, of an input added to f. Forward solves use Anderson, or plain iteration for methods that
    cannot differentiate Anderson's steps; their error is part of the gradient's.

    Args:
        problems: as for `compare`; None takes differentiable ones.
        gradients: specs ("phantom:steps=8"), dicts with ``name``, or objects, or one of them; None takes every
            registered one.
        each: called with every problem's result as soon as it is there; text that it returns is printed above the bar.
        **settings: fields of `Settings`; the dtype sets the tolerance of the forward solve.

    Raises:
        KeyError: an unknown name; the message names the nearest one.
        TypeError, ValueError: a bad option or setting.
        ImportError: a plugin that was named and cannot be imported.

    Examples:
        >>> from deqlm.comparison import compare_gradients
        >>> result = compare_gradients(["tanh:rho=0.5,unknowns=8"], ["implicit", "one_step"], repeats=1)
        >>> [round(entry.cosine, 1) for entry in result.problems[0].entries][0]
        1.0
    """
    chosen = Settings.of(**settings)
    asked = to_list(problems)
    standard = DIFFERENTIABLE[:2] if chosen.quick else DIFFERENTIABLE
    subjects = list(standard) if asked is None else [to_problem(p) for p in asked]
    makers = to_rows(GRADIENTS, gradients)

    def compare_on(problem: Problem, result: GradientComparison, bar: Progress) -> None:
        row = GradientProblem(label=problem.label, title=problem.title, tol=chosen.tol)
        result.problems.append(row)
        _compare_on(problem, chosen, makers, row, bar)

    steps = len(subjects) * len(makers) * (chosen.runs + 1)
    return compare_on_all(subjects, chosen, GradientComparison, compare_on, steps, each)


def _compare_on(
    problem: Problem,
    settings: Settings,
    makers: list[tuple[str, Callable[[], Gradient]]],
    row: GradientProblem,
    bar: Progress,
) -> None:
    try:
        case = problem.build(settings)
        subject = GradientSubject(case, settings.seed, Stop(max_iter=case.max_iter, rtol=settings.tol))
    except Exception as error:
        row.message = one_line(error)
        return
    with subject:
        try:
            truth = subject.truth()
        except Exception as error:
            row.message = one_line(error)
            return
        if truth is None:
            row.message = NO_TRUTH
            return
        row.rows, row.unknowns = case.z0.shape
        row.parameters = truth.numel()
        _compare_methods(problem, settings, makers, row, bar, subject, truth)


def _compare_methods(
    problem: Problem,
    settings: Settings,
    makers: list[tuple[str, Callable[[], Gradient]]],
    row: GradientProblem,
    bar: Progress,
    subject: GradientSubject,
    truth: Tensor,
) -> None:
    ready = []
    for label, make in makers:
        bar.step(f"{problem.label}  {label}")
        entry = GradientEntry(gradient=label)
        row.entries.append(entry)
        try:
            method = make()
            how = _forward_for(method, subject.stop)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                gradient, _, _, sol = subject.run(how, method)
        except ImportError as error:
            entry.outcome, entry.message = "not installed", one_line(error)
        except Exception as error:
            entry.message = one_line(error)
        else:
            _judge(entry, gradient.double(), truth, sol, how)
            entry.evaluations, entry.vjps = subject.evaluations, subject.vjps
            ready.append((entry, how, method))
    for repeat in range(settings.runs):
        turn = repeat % max(1, len(ready))
        for entry, how, method in ready[turn:] + ready[:turn]:
            bar.step(f"{problem.label}  {entry.gradient}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _, forward, backward, _ = subject.run(how, method)
            entry.forward.append(forward)
            entry.backward.append(backward)


def _forward_for(method: Gradient, stop: Stop) -> Solve:
    refused: ValueError | None = None
    for name in FORWARD:
        how = Solve(name, stop)  # type: ignore[arg-type]
        try:
            method.check(how)
        except ValueError as error:
            refused = refused or error
        else:
            return how
    assert refused is not None
    raise refused


def _judge(entry: GradientEntry, gradient: Tensor, truth: Tensor, sol: Any, how: Solve) -> None:
    size = truth.norm()
    entry.outcome, entry.solver = "ran", how.solver.name
    entry.cosine = (gradient @ truth / (gradient.norm() * size)).item()
    entry.error = ((gradient - truth).norm() / size).item()
    remarks = []
    failed = int(sol.failed.sum())
    if failed:
        remarks.append(f"forward fails in {failed} rows")
    adjoint = sol.adjoint
    if (
        adjoint is not None
        and adjoint.status is not None
        and (lost := int((adjoint.status > int(Status.BUDGET)).sum()))
    ):
        remarks.append(f"backward fails in {lost} rows")
    entry.remark = ", ".join(remarks)
