"""Runs solvers on problems: a few evaluations to warm up, a recorded run, interleaved timed runs, a run for memory."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

import torch

from deqlm.comparison.memory import peak_memory
from deqlm.comparison.noise import CHANGES, changes
from deqlm.comparison.problem import Case, Problem
from deqlm.comparison.problems import DEFAULT, QUICK
from deqlm.comparison.problems.named import to_problem
from deqlm.comparison.problems.user import UserProblem
from deqlm.comparison.recorder import CountingMap, Recorder, relative_residual, synchronize
from deqlm.comparison.run import Each, compare_on_all, one_line
from deqlm.comparison.settings import Settings, SettingsOptions
from deqlm.comparison.solvers.compiled import CompiledMaker, CompiledRow, compiled_makers
from deqlm.comparison.solvers.entry import Entry, ProblemResult
from deqlm.comparison.solvers.result import Comparison
from deqlm.comparison.spec import to_list, to_rows
from deqlm.compiled.settings import Compile, GivenCompile
from deqlm.reporting.progress import Progress
from deqlm_solvers import SOLVERS, Solution, Solve, Solver, Status, Stop
from deqlm_solvers.adapters import ScipyHybr

__all__ = ["compare"]

PATIENCE = 0.5
"""Seconds of timed runs after which a solver is not timed again on a problem."""

WARM_UP = 10
"""Evaluations before the recorded run, so that what a first call loads is in no trace."""


def compare(
    problems: Iterable[str | Problem | Callable[..., Any]] | str | Problem | Callable[..., Any] | None = None,
    solvers: Iterable[str | Mapping[str, Any] | Solver] | str | Mapping[str, Any] | Solver | None = None,
    *,
    memory: bool = True,
    compile: GivenCompile = False,
    each: Each | None = None,
    **settings: Unpack[SettingsOptions],
) -> Comparison:
    """Compare solvers on problems, by what f saw and by the true residual of what they return.

    Every solver gets the same map, start, tolerance and number of evaluations. It runs for at most 10 evaluations to
    warm up; then once recorded; then ``repeats`` times timed, the solvers interleaved and their order rotated, of which
    the median counts; then once for memory. Equal seeds give equal counts on one machine. A solver that raises or is
    not installed keeps its row.

    Args:
        problems: specs ("symmetric:rho=0.99", "module:callable"), problems, or factories of (f, z0), or one of them;
            None takes a selection of every family (a smaller one with ``quick``).
        solvers: specs ("anderson:memory=5"), dicts with ``name``, or objects, or one of them; None takes every
            registered one.
        memory: measure peak memory, which needs a slow run of its own.
        compile: True, or a `deqlm.Compile`: add a row for each solver whose solve can be compiled, which takes some
            ten seconds for each problem. Time is that of later calls; memory is not measured there.
        each: called with every problem's result as soon as it is there; text that it returns is printed above the bar.
        **settings: fields of `Settings`: ``dtype``, ``batch``, ``seed``, ``repeats`` (a solver whose timed runs took
            half a second in all is not timed again), ``threads``, ``device``, ``quick``, ``progress``.

    Returns:
        `Comparison`: ``print`` it, or read its fields. After Ctrl-C it holds what was done.

    Raises:
        KeyError: an unknown name; the message names the nearest one.
        TypeError, ValueError: a bad option or setting, or a solver asked for twice.
        ImportError: a plugin that was named and cannot be imported.

    Examples:
        >>> from deqlm.comparison import compare
        >>> result = compare(["symmetric:rho=0.5"], ["fixed_point", "anderson"], repeats=1)
        >>> result["symmetric:rho=0.5"].entry("anderson").outcome
        'solved'
    """
    chosen = Settings.of(**settings)
    asked = to_list(problems)
    standard = QUICK if chosen.quick else DEFAULT
    subjects = list(standard) if asked is None else [to_problem(p) for p in asked]
    makers = to_rows(SOLVERS, solvers)
    how = Compile.of(compile)
    compiled = [] if how is None else compiled_makers(makers, how)

    def compare_on(problem: Problem, result: Comparison, bar: Progress) -> None:
        run = _ProblemRun(problem, chosen, makers, memory, bar, compiled)
        result.problems.append(run.result)
        run.all()

    steps = len(subjects) * (len(makers) * (chosen.runs + 1 + memory) + len(compiled) * (chosen.runs + 1))
    return compare_on_all(subjects, chosen, Comparison, compare_on, steps, each)


class _ProblemRun:
    """All runs of one problem, in the order that makes times comparable."""

    def __init__(
        self,
        problem: Problem,
        settings: Settings,
        makers: Sequence[tuple[str, Callable[[], Solver]]],
        memory: bool,
        bar: Progress,
        compiled: Sequence[CompiledMaker] = (),
    ) -> None:
        self.problem = problem
        self.compiled = compiled
        self.settings = settings
        self.makers = makers
        self.memory = memory
        self.bar = bar
        self.result = ProblemResult(label=problem.label, title=problem.title, yours=isinstance(problem, UserProblem))
        self.ready: list[tuple[Entry, Solve | CompiledRow]] = []

    def all(self) -> None:
        """Do everything; an interruption leaves what was done in `result`."""
        try:
            case = self.problem.build(self.settings)
            noisy = changes(case.f, case.z0, self.settings.tol)
        except Exception as error:
            self.result.message = one_line(error)
            return
        self._describe(case, noisy)
        try:
            self._record(case)
            self._time(case)
            if self.memory:
                self._weigh(case)
        finally:
            self._finish()

    def _describe(self, case: Case, noisy: bool) -> None:
        result = self.result
        result.rows, result.unknowns = case.z0.shape
        result.tokens = case.tokens
        result.tol, result.max_iter = self.settings.tol, case.max_iter
        result.note = "\n".join(filter(None, [CHANGES if noisy else "", case.note]))

    def _record(self, case: Case) -> None:
        truth = case.solution()
        stop = Stop(max_iter=case.max_iter, rtol=self.settings.tol)
        for label, make in self.makers:
            self.bar.step(f"{self.problem.label}  {label}")
            entry = Entry(solver=label)
            recorder = Recorder(case.f, case.z0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    how = Solve(make(), stop)
                    _warm_up(how, case)
                    recorder.restart()
                    sol = _solve(how, recorder, case)
                except ImportError as error:
                    entry.outcome, entry.message = "not installed", one_line(error)
                except Exception as error:
                    entry.message = one_line(error)
                    entry.trace = recorder.trace()
                    entry.evaluations, entry.row_evaluations = recorder.evaluations, recorder.row_evaluations
                else:
                    _judge(entry, sol, recorder, case, truth, self.settings)
                    entry.remark = _remark(how, entry, case)
                    self.ready.append((entry, how))
                entry.token_evaluations = entry.row_evaluations * case.tokens
            entry.warnings = sorted({str(w.message) for w in caught})
            self.result.entries.append(entry)
        for label, make in self.compiled:
            self._record_compiled(case, truth, label, make(stop, case.f))

    def _record_compiled(self, case: Case, truth: torch.Tensor | None, label: str, row: CompiledRow) -> None:
        """Run a program; nobody sees what it evaluates, so its counts are its own."""
        self.bar.step(f"{self.problem.label}  {label}")
        entry = Entry(solver=label)
        try:
            sol = row(case.f, case.z0)
        except Exception as error:
            entry.message = one_line(error)
        else:
            _judge(entry, sol, None, case, truth, self.settings)
            self.ready.append((entry, row))
        self.result.entries.append(entry)

    def _time(self, case: Case) -> None:
        calls = _calls_for(case)
        bare = [_bare_seconds(case, calls)]
        for repeat in range(self.settings.runs):
            turn = repeat % max(1, len(self.ready))
            for entry, how in self.ready[turn:] + self.ready[:turn]:
                self.bar.step(f"{self.problem.label}  {entry.solver}")
                if sum(entry.times) < PATIENCE:
                    entry.times.append(_timed(how, case))
            bare.append(_bare_seconds(case, calls))
            self.result.f_seconds = statistics.median(bare)

    def _weigh(self, case: Case) -> None:
        state = case.z0.numel() * case.z0.element_size()
        for entry, how in self.ready:
            if isinstance(how, CompiledRow):
                continue
            self.bar.step(f"{self.problem.label}  {entry.solver}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                entry.memory = peak_memory(lambda f, how=how: _solve(how, f, case), case.f) / state

    def _finish(self) -> None:
        for entry, _ in self.ready:
            seconds = entry.seconds
            if seconds is not None:
                entry.overhead = (seconds - entry.evaluations * self.result.f_seconds) / max(1, entry.evaluations)
                entry.trace = entry.trace and entry.trace.scaled(seconds)


def _solve(how: Solve | CompiledRow, f: Callable[..., Any], case: Case) -> Solution:
    with torch.no_grad():
        return how(f, case.z0)


def _warm_up(how: Solve, case: Case) -> None:
    """Run a few evaluations; what goes wrong shows in the recorded run."""
    short = how.stop.replace(max_iter=min(WARM_UP, case.max_iter))
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        _solve(Solve(how.solver, short), case.f, case)


def _judge(
    entry: Entry, sol: Solution, recorder: Recorder | None, case: Case, truth: torch.Tensor | None, settings: Settings
) -> None:
    """Fill in what the recorded run tells, by the true residual and the counts that f saw, or the solver's own."""
    z = sol.z.detach().double()
    with torch.no_grad():
        relative = relative_residual(z, case.exact(z))
    rows = z.shape[0]
    entry.solved = int((relative <= settings.accepted).sum())
    entry.outcome = "solved" if entry.solved == rows else "unsolved"
    entry.residual = relative.max().item() if rows else 0.0
    seen = sol.cost if recorder is None else recorder
    entry.evaluations, entry.row_evaluations = seen.evaluations, seen.row_evaluations
    entry.statuses = {Status(code).name: n for code, n in sorted(Counter(sol.status.tolist()).items())}
    entry.claimed = entry.statuses.get("CONVERGED", 0)
    entry.counts_agree = sol.cost.evaluations == seen.evaluations
    entry.trace = None if recorder is None else recorder.trace()
    if truth is not None:
        distance = torch.linalg.vector_norm(z - truth, dim=1) / torch.linalg.vector_norm(truth, dim=1)
        entry.error = distance.nan_to_num(nan=torch.inf).max().item()


def _remark(how: Solve, entry: Entry, case: Case) -> str:
    """Return what keeps a failure from being read as a weakness of the method."""
    unknowns = case.z0.numel()
    if entry.outcome == "unsolved" and isinstance(how.solver, ScipyHybr) and how.solver.band is None:
        needed = unknowns + 1
        if needed > case.max_iter:
            return f"needs B*N+1 = {needed} evaluations for its first Jacobian, {case.max_iter} are allowed"
    return ""


def _timed(how: Solve | CompiledRow, case: Case) -> float:
    counting = CountingMap(case.f)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            synchronize(case.z0.device)
            begun = time.perf_counter()
            _solve(how, counting, case)
            synchronize(case.z0.device)
            return time.perf_counter() - begun
    finally:
        if collecting:
            gc.enable()


def _calls_for(case: Case, wanted: float = 0.01) -> int:
    """Return how many bare calls of f take about ``wanted`` seconds, 5 to 200."""
    once = min(_bare_seconds(case, 1) for _ in range(3))
    return max(5, min(200, round(wanted / max(once, 1e-7))))


def _bare_seconds(case: Case, calls: int) -> float:
    with torch.no_grad():
        synchronize(case.z0.device)
        begun = time.perf_counter()
        for _ in range(calls):
            case.f(case.z0)
        synchronize(case.z0.device)
        return (time.perf_counter() - begun) / calls
