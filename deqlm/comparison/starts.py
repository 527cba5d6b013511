"""Compare starts: what a solve saves that begins at the solution of the one before."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from deqlm.comparison.base import Result, Row, position
from deqlm.comparison.problem import Case, Setting
from deqlm.comparison.problems.sequences import STANDARD, Sequence, to_sequence
from deqlm.comparison.recorder import relative_residual, synchronize
from deqlm.comparison.runner import one_line
from deqlm.comparison.session import Session
from deqlm.comparison.spec import to_list, to_rows
from deqlm.reporting.progress import Progress
from deqlm_solvers import SOLVERS, Solution, Solve, Solver, Stop

__all__ = ["SOLVED_BY", "StartComparison", "StartEntry", "StartProblem", "compare_starts"]

SOLVED_BY = ("fixed_point", "anderson", "broyden")
"""Solvers that are compared when none is named."""

PAYS = 0.05
"""Share of the evaluations from which on a start is said to pay, or to cost."""


@dataclass
class StartEntry:
    """One solver on one sequence; lists have one number per solve but the first, which has none before it.

    Attributes:
        solver: label, as one would type it.
        outcome: "ran", "raised" or "not installed".
        message: what was raised, one line.
        zero: evaluations per row, mean of the rows, from where the problem starts.
        previous: the same from the solution that this solver returned for the map before.
        seconds_zero, seconds_previous: median times.
        unsolved_zero, unsolved_previous: rows, over all solves, whose true relative residual is above 1.05 tolerance.
        both: rows, over all solves, that are solved from either start.
        apart: largest ||z_previous - z_zero|| / ||z_zero|| of these rows: far above the tolerance, another
            fixed point was found.

    Examples:
        >>> StartEntry("anderson", "ran", zero=[20.0, 20.0], previous=[5.0, 15.0], both=8).verdict
        'pays'
    """

    solver: str
    outcome: str = "raised"
    message: str = ""
    zero: list[float] = field(default_factory=list)
    previous: list[float] = field(default_factory=list)
    seconds_zero: list[float] = field(default_factory=list)
    seconds_previous: list[float] = field(default_factory=list)
    unsolved_zero: int = 0
    unsolved_previous: int = 0
    both: int = 0
    apart: float = 0.0

    @property
    def ran(self) -> bool:
        """True when the solver returned something."""
        return self.outcome == "ran"

    @property
    def steps_zero(self) -> float:
        """Evaluations per row and solve, from zero."""
        return statistics.fmean(self.zero)

    @property
    def steps_previous(self) -> float:
        """Evaluations per row and solve, from the solution before."""
        return statistics.fmean(self.previous)

    @property
    def saved(self) -> float:
        """Share of the evaluations that the solution before saves; negative where it costs."""
        return 1 - sum(self.previous) / sum(self.zero)

    @property
    def verdict(self) -> Literal["pays", "costs", "no difference", "fails", "unsolved"]:
        """What it comes to: "fails" where more rows are unsolved than from zero, "unsolved" where none is solved."""
        if self.unsolved_previous > self.unsolved_zero:
            return "fails"
        if self.both == 0:
            return "unsolved"
        if abs(self.saved) < PAYS:
            return "no difference"
        return "pays" if self.saved > 0 else "costs"


@dataclass
class StartProblem(Row):
    """All solvers on one sequence; fields as in `ProblemResult`, and the number of solves from the second on."""

    solves: int = 0
    tol: float = 0.0
    message: str = ""
    entries: list[StartEntry] = field(default_factory=list)

    def entry(self, solver: str) -> StartEntry:
        """Return the entry of a label.

        Raises:
            KeyError: no such solver in this comparison; the message names the nearest one.
        """
        return self.entries[position("solver", solver, [entry.solver for entry in self.entries])]


@dataclass
class StartComparison(Result[StartProblem]):
    """Result of `compare_starts`; what is not said here is as in `Comparison`.

    Attributes:
        problems: one `StartProblem` per sequence, in the order asked for.

    Examples:
        >>> from deqlm.comparison import compare_starts
        >>> result = compare_starts("inputs:change=0.01,inputs:change=1.4", "fixed_point", repeats=1, progress=False)
        >>> [problem.entries[0].verdict for problem in result.problems][0]
        'pays'
        >>> [path.name for path in result.save("my-results", plots=False)]
        ['starts.json', 'starts.txt']
    """

    kind = "starts"

    def __str__(self) -> str:
        from deqlm.comparison.start_report import start_table

        return start_table(self)


def compare_starts(
    sequences: Iterable[str | Sequence | Callable[..., Any]] | str | Sequence | Callable[..., Any] | None = None,
    solvers: Iterable[str | Mapping[str, Any] | Solver] | str | Mapping[str, Any] | Solver | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    batch: int | None = None,
    seed: int = 0,
    repeats: int = 5,
    device: str | torch.device = "cpu",
    quick: bool = False,
    threads: int | None = 1,
    progress: bool | None = None,
) -> StartComparison:
    """Compare solves that start at zero with solves that start at the solution of the map before.

    Every map of a sequence is solved both ways by every solver. The point alone is carried over: no solver of this
    library keeps its history from one solve to the next.

    Args:
        sequences: specs ("inputs:change=0.1", "module:callable"), `Sequence` objects or factories of pairs (f, z0), or
            one of them; None takes inputs that change little, more and wholly, epochs of a training, and two chains of
            tokens.
        solvers: as for `compare`; None takes fixed_point, anderson and broyden.
        dtype: as for `compare`; it sets the tolerance.
        batch: rows B, >= 1; None takes each sequence's own number.
        seed: seed of everything random, a whole number in [0, 2**63).
        repeats: timed runs of every solve, >= 1, of which the median counts.
        device: where the state lives.
        quick: half of the sequences and at most 2 repeats.
        threads: threads of torch for the run; None leaves torch's setting.
        progress: draw a progress bar on stderr; None when that is a terminal.

    Raises:
        KeyError: an unknown name; the message names the nearest one.
        TypeError, ValueError: bad options, dtype, batch, seed or repeats.
        ImportError: a plugin that was named and cannot be imported.

    Examples:
        >>> from deqlm.comparison import compare_starts
        >>> entry = compare_starts("inputs:change=0.01", "fixed_point", repeats=1).problems[0].entry("fixed_point")
        >>> entry.verdict, entry.unsolved_previous
        ('pays', 0)
    """
    session = Session.of(
        dtype=dtype, device=device, batch=batch, seed=seed, repeats=repeats, quick=quick, threads=threads,
        progress=progress,
    )  # fmt: skip
    asked = to_list(sequences)
    chosen = list(STANDARD[::2] if quick else STANDARD) if asked is None else [to_sequence(s) for s in asked]
    makers = to_rows(SOLVERS, SOLVED_BY if solvers is None else solvers)

    def compare_on(sequence: Sequence, result: StartComparison, bar: Progress) -> None:
        bar.step(sequence.label)
        row = StartProblem(label=sequence.label, title=sequence.title, tol=session.setting.tol)
        result.problems.append(row)
        _compare_on(sequence, session, makers, row)

    return session.over(chosen, StartComparison, compare_on, len(chosen))


def _compare_on(
    sequence: Sequence,
    session: Session,
    makers: list[tuple[str, Callable[[], Solver]]],
    row: StartProblem,
) -> None:
    chains = [_Chain(StartEntry(solver=label), make) for label, make in makers]
    try:
        for number, case in enumerate(sequence.members(session.setting)):
            if number == 0:
                row.rows, row.unknowns = case.z0.shape
            row.solves = number
            for chain in chains:
                chain.solve(case, session.setting, session.repeats)
    except Exception as error:  # what a sequence of the user raises becomes its line in the table
        row.message = one_line(error)
        return
    if row.solves == 0:
        row.message = "a sequence needs two maps at least"
        return
    row.entries = [chain.entry for chain in chains]


class _Chain:
    """The solves of one solver along a sequence."""

    def __init__(self, entry: StartEntry, make: Callable[[], Solver]) -> None:
        self.entry = entry
        self.make = make
        self.before: Tensor | None = None
        self.over = False

    def solve(self, case: Case, setting: Setting, repeats: int) -> None:
        """Solve one map from both starts and note what it took; after an error, nothing more."""
        if self.over:
            return
        entry = self.entry
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                how = Solve(self.make(), Stop(max_iter=case.max_iter, rtol=setting.tol))
                zero, seconds_zero = _timed(how, case, case.z0, repeats if self.before is not None else 1)
                if self.before is None:
                    self.before = zero.z
                    return
                previous, seconds_previous = _timed(how, case, self.before, repeats)
        except ImportError as error:
            entry.outcome, entry.message, self.over = "not installed", one_line(error), True
            return
        except Exception as error:
            entry.outcome, entry.message, self.over = "raised", one_line(error), True
            return
        self.before = torch.where(previous.z.isfinite().all(1, keepdim=True), previous.z, case.z0)
        entry.outcome = "ran"
        entry.zero.append(zero.steps.double().mean().item())
        entry.previous.append(previous.steps.double().mean().item())
        entry.seconds_zero.append(seconds_zero)
        entry.seconds_previous.append(seconds_previous)
        solved = [_solved(sol.z, case, setting) for sol in (zero, previous)]
        entry.unsolved_zero += int((~solved[0]).sum())
        entry.unsolved_previous += int((~solved[1]).sum())
        both = solved[0] & solved[1]
        entry.both += int(both.sum())
        if bool(both.any()):
            a, b = (sol.z[both].double() for sol in (zero, previous))
            entry.apart = max(entry.apart, ((a - b).norm(dim=1) / a.norm(dim=1)).max().item())


def _timed(how: Solve, case: Case, start: Tensor, repeats: int) -> tuple[Solution, float]:
    """Return the solution and the median seconds of ``repeats`` runs."""
    taken = []
    with torch.no_grad():
        for _ in range(repeats):
            synchronize(start.device)
            begun = time.perf_counter()
            sol = how(case.f, start)
            synchronize(start.device)
            taken.append(time.perf_counter() - begun)
    return sol, statistics.median(taken)


def _solved(z: Tensor, case: Case, setting: Setting) -> Tensor:
    with torch.no_grad():
        return relative_residual(z.double(), case.exact(z.double())) <= setting.accepted
