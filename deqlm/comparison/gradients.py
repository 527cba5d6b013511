"""Compare gradient methods with the exact gradient of the fixed point."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deqlm.comparison.base import Result, Row, position
from deqlm.comparison.problem import Case, Problem
from deqlm.comparison.problems import DIFFERENTIABLE
from deqlm.comparison.recorder import synchronize
from deqlm.comparison.runner import one_line
from deqlm.comparison.session import Session
from deqlm.comparison.spec import to_list, to_problem, to_rows
from deqlm.comparison.truth import jacobians, polish
from deqlm.functional import solve
from deqlm.gradients import GRADIENTS, Gradient
from deqlm.reporting.progress import Progress
from deqlm_solvers import Map, Solve, Stop

__all__ = ["GradientComparison", "GradientEntry", "GradientProblem", "compare_gradients"]

FORWARD = ("anderson", "fixed_point")
"""Forward solvers, the first that a method can differentiate is used."""

NO_TRUTH = (
    "no fixed point found to 1e-12 in float64: "
    "f must run in float64 (return an nn.Module) and be deterministic (.eval())"
)
"""Message where no exact gradient exists to compare with."""


@dataclass
class GradientEntry:
    """One gradient method on one problem.

    Attributes:
        gradient: label, as one would type it.
        outcome: "ran", "raised" or "not installed".
        message: what was raised, one line.
        solver: the forward solver.
        cosine: cosine between the gradient and the exact one, over all parameters together.
        error: ||g - g_exact|| / ||g_exact||.
        evaluations: calls of f, forward and backward together.
        vjps: times backward went through an evaluation of f.
        forward, backward: seconds of each timed run.
        remark: backward solves that did not converge.
    """

    gradient: str
    outcome: str = "raised"
    message: str = ""
    solver: str = ""
    cosine: float | None = None
    error: float | None = None
    evaluations: int = 0
    vjps: int = 0
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    remark: str = ""

    @property
    def ran(self) -> bool:
        """True when the method returned a gradient."""
        return self.outcome == "ran"

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Medians of the forward and of the backward times."""
        if not self.forward:
            return None
        return statistics.median(self.forward), statistics.median(self.backward)

    @property
    def total(self) -> float | None:
        """Median of forward and backward together, which is what a training step pays; None when not timed."""
        if not self.forward:
            return None
        return statistics.median(f + b for f, b in zip(self.forward, self.backward, strict=True))


@dataclass
class GradientProblem(Row):
    """All gradient methods on one problem; fields as in `ProblemResult`, and the number of parameters."""

    parameters: int = 0
    tol: float = 0.0
    message: str = ""
    entries: list[GradientEntry] = field(default_factory=list)

    def entry(self, gradient: str) -> GradientEntry:
        """Return the entry of a gradient label.

        Raises:
            KeyError: no such gradient in this comparison; the message names the nearest one.
        """
        return self.entries[position("gradient", gradient, [entry.gradient for entry in self.entries])]


@dataclass
class GradientComparison(Result[GradientProblem]):
    """Result of `compare_gradients`; what is not said here is as in `Comparison`.

    Attributes:
        problems: one `GradientProblem` per problem, in the order asked for.

    Examples:
        >>> from deqlm.comparison import compare_gradients
        >>> result = compare_gradients("tanh:rho=0.5,unknowns=8", "phantom,one_step", repeats=1, progress=False)
        >>> phantom, one_step = result.problems[0].entries
        >>> phantom.error < one_step.error
        True
        >>> [path.name for path in result.save("my-results", plots=False)]
        ['gradients.json', 'gradients.txt']
    """

    kind = "gradients"

    def __str__(self) -> str:
        from deqlm.comparison.gradient_report import gradient_table

        return gradient_table(self)


def compare_gradients(
    problems: Iterable[str | Problem | Callable[..., Any]] | str | Problem | Callable[..., Any] | None = None,
    gradients: Iterable[str | Mapping[str, Any] | Gradient] | str | Mapping[str, Any] | Gradient | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    batch: int | None = None,
    seed: int = 0,
    repeats: int = 5,
    device: str | torch.device = "cpu",
    quick: bool = False,
    threads: int | None = 1,
    progress: bool | None = None,
) -> GradientComparison:
    """Compare gradient methods with the exact gradient, a dense float64 solve with I - J^T at a polished fixed point.

    The loss is a fixed random linear function of the fixed point; the gradient is that of all parameters of f together,
    or, where f has none, of an input added to f. Forward solves use Anderson, or plain iteration for methods that
    cannot differentiate Anderson's steps; their error is part of the gradient's.

    Args:
        problems: as for `compare`; None takes differentiable ones.
        gradients: specs ("phantom:steps=8"), dicts with ``name``, or objects, or one of them; None takes every
            registered one.
        dtype: as for `compare`; it sets the tolerance of the forward solve.
        batch: rows B, >= 1; None takes each problem's own number.
        seed: seed of everything random, a whole number in [0, 2**63).
        repeats: timed runs, >= 1, interleaved.
        device: where the state lives.
        quick: fewer problems and at most 2 repeats.
        threads: threads of torch for the run; None leaves torch's setting.
        progress: draw a progress bar on stderr; None when that is a terminal.

    Raises:
        KeyError: an unknown name; the message names the nearest one.
        TypeError, ValueError: bad options, dtype, batch, seed or repeats.
        ImportError: a plugin that was named and cannot be imported.

    Examples:
        >>> from deqlm.comparison import compare_gradients
        >>> result = compare_gradients(["tanh:rho=0.5,unknowns=8"], ["implicit", "one_step"], repeats=1)
        >>> [round(entry.cosine, 1) for entry in result.problems[0].entries][0]
        1.0
    """
    session = Session.of(
        dtype=dtype, device=device, batch=batch, seed=seed, repeats=repeats, quick=quick, threads=threads,
        progress=progress,
    )  # fmt: skip
    standard = DIFFERENTIABLE[:2] if quick else DIFFERENTIABLE
    asked = to_list(problems)
    chosen = list(standard) if asked is None else [to_problem(p) for p in asked]
    makers = to_rows(GRADIENTS, gradients)

    def compare_on(problem: Problem, result: GradientComparison, bar: Progress) -> None:
        row = GradientProblem(label=problem.label, title=problem.title, tol=session.setting.tol)
        result.problems.append(row)
        _compare_on(problem, session, makers, row, bar)

    return session.over(chosen, GradientComparison, compare_on, len(chosen) * len(makers) * (session.repeats + 1))


class _Subject:
    """A case with its loss and what is differentiated; counts evaluations of f and passes of backward through them."""

    def __init__(self, case: Case, seed: int, stop: Stop) -> None:
        self.stop = stop
        self.z0 = case.z0
        draw = torch.Generator().manual_seed(seed + 1)
        self.loss_weight = torch.randn(case.z0.shape, generator=draw, dtype=torch.float64, device="cpu").to(case.z0)
        self.f, self.leaves = _with_leaves(case.f, case.parameters, case.z0)
        self.exact, self.exact_leaves = _with_leaves(case.exact, case.exact_parameters, case.z0.double())
        self.evaluations = self.vjps = 0

    def counted(self, z: Tensor) -> Tensor:
        """Evaluate f and count."""
        self.evaluations += 1
        fz = self.f(z)
        if fz.requires_grad:
            fz.register_hook(self._passed)
        return fz

    def truth(self) -> Tensor | None:
        """Return the exact gradient as one float64 vector, or None where the fixed point cannot be polished."""
        z = polish(self.exact, self.z0)
        if z is None:
            return None
        system = torch.eye(z.shape[1], dtype=z.dtype, device=z.device) - jacobians(self.exact, z).mT
        w = torch.linalg.solve(system, self.loss_weight.double()[:, :, None])[:, :, 0]
        with torch.enable_grad():
            return _joined(self.exact(z), self.exact_leaves, w)

    def run(self, how: Solve, method: Gradient) -> tuple[Tensor, float, float, Any]:
        """Return the gradient, seconds forward, seconds backward, and the solution."""
        self.evaluations = self.vjps = 0
        device = self.z0.device
        synchronize(device)
        begun = time.perf_counter()
        with torch.enable_grad():
            sol = solve(self.counted, self.z0, solver=how.solver, stop=how.stop, gradient=method, on_failure="ignore")
            synchronize(device)
            halfway = time.perf_counter()
            gradient = _joined(sol.z, self.leaves, self.loss_weight)
        synchronize(device)
        return gradient, halfway - begun, time.perf_counter() - halfway, sol

    def _passed(self, _: Tensor) -> None:
        self.vjps += 1


def _compare_on(
    problem: Problem,
    session: Session,
    makers: list[tuple[str, Callable[[], Gradient]]],
    row: GradientProblem,
    bar: Progress,
) -> None:
    try:
        setting = session.setting
        case = problem.build(setting)
        subject = _Subject(case, setting.seed, Stop(max_iter=case.max_iter, rtol=setting.tol))
        truth = subject.truth()
    except Exception as error:
        row.message = one_line(error)
        return
    if truth is None:
        row.message = NO_TRUTH
        return
    row.rows, row.unknowns = case.z0.shape
    row.parameters = truth.numel()
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
    for repeat in range(session.repeats):
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
    if adjoint is not None and adjoint.ran and not bool(adjoint.converged.all()):
        remarks.append(f"backward fails in {int((~adjoint.converged).sum())} rows")
    entry.remark = ", ".join(remarks)


def _with_leaves(f: Map, parameters: tuple[Tensor, ...], z0: Tensor) -> tuple[Map, tuple[Tensor, ...]]:
    leaves = tuple(p for p in parameters if p.is_floating_point())
    if leaves:
        for leaf in leaves:
            leaf.requires_grad_()
        return f, leaves
    u = torch.zeros_like(z0, requires_grad=True)
    return (lambda z: f(z) + u), (u,)


def _joined(output: Tensor, leaves: tuple[Tensor, ...], cotangent: Tensor) -> Tensor:
    gradients = torch.autograd.grad(output, leaves, cotangent, allow_unused=True)
    parts = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]
    return torch.cat([part.flatten() for part in parts])
