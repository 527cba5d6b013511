"""Compare starts: what a solve saves that begins at the solution of the one before."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor

from deqlm.comparison.problem import Case
from deqlm.comparison.problems.named import to_sequence
from deqlm.comparison.problems.sequences import STANDARD, Sequence
from deqlm.comparison.recorder import relative_residual, synchronize
from deqlm.comparison.run import Each, compare_on_all, one_line
from deqlm.comparison.settings import Settings, SettingsOptions
from deqlm.comparison.spec import to_list, to_rows
from deqlm.comparison.starts.result import StartComparison, StartEntry, StartProblem
from deqlm.reporting.progress import Progress
from deqlm_solvers import SOLVERS, Solution, Solve, Solver, Stop

__all__ = ["SOLVED_BY", "compare_starts"]

SOLVED_BY = ("fixed_point", "anderson", "broyden")
"""Solvers that are compared when none is named."""


def compare_starts(
    sequences: Iterable[str | Sequence | Callable[..., Any]] | str | Sequence | Callable[..., Any] | None = None,
    solvers: Iterable[str | Mapping[str, Any] | Solver] | str | Mapping[str, Any] | Solver | None = None,
    *,
    each: Each | None = None,
    **settings: Unpack[SettingsOptions],
) -> StartComparison:
    """Compare solves that start at zero with solves that start at the solution of the map before.

    Every map of a sequence is solved both ways by every solver. The point alone is carried over: no solver of this
    library keeps its history from one solve to the next.

    Args:
        sequences: specs ("inputs:change=0.1", "module:callable"), `Sequence` objects or factories of pairs (f, z0), or
            one of them; None takes inputs that change little, more and wholly, epochs of a training, and two chains of
            tokens.
        solvers: as for `compare`; None takes fixed_point, anderson and broyden.
        each: called with every problem's result as soon as it is there; text that it returns is printed above the bar.
        **settings: fields of `Settings`; ``quick`` takes half of the sequences.

    Raises:
        KeyError: an unknown name; the message names the nearest one.
        TypeError, ValueError: a bad option or setting.
        ImportError: a plugin that was named and cannot be imported.

    Examples:
        >>> from deqlm.comparison import compare_starts
        >>> entry = compare_starts("inputs:change=0.01", "fixed_point", repeats=1).problems[0].entry("fixed_point")
        >>> entry.verdict, entry.unsolved_previous
        ('pays', 0)
    """
    chosen = Settings.of(**settings)
    asked = to_list(sequences)
    standard = STANDARD[::2] if chosen.quick else STANDARD
    subjects = list(standard) if asked is None else [to_sequence(s) for s in asked]
    makers = to_rows(SOLVERS, SOLVED_BY if solvers is None else solvers)

    def compare_on(sequence: Sequence, result: StartComparison, bar: Progress) -> None:
        bar.step(sequence.label)
        row = StartProblem(label=sequence.label, title=sequence.title, tol=chosen.tol)
        result.problems.append(row)
        _compare_on(sequence, chosen, makers, row)

    return compare_on_all(subjects, chosen, StartComparison, compare_on, len(subjects), each)


def _compare_on(
    sequence: Sequence,
    settings: Settings,
    makers: list[tuple[str, Callable[[], Solver]]],
    row: StartProblem,
) -> None:
    chains = [_Chain(StartEntry(solver=label), make) for label, make in makers]
    try:
        for number, case in enumerate(sequence.members(settings)):
            if number == 0:
                row.rows, row.unknowns = case.z0.shape
            row.solves = number
            for chain in chains:
                chain.solve(case, settings)
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

    def solve(self, case: Case, settings: Settings) -> None:
        """Solve one map from both starts and note what it took; after an error, nothing more."""
        if self.over:
            return
        entry = self.entry
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                how = Solve(self.make(), Stop(max_iter=case.max_iter, rtol=settings.tol))
                zero, seconds_zero = _timed(how, case, case.z0, settings.runs if self.before is not None else 1)
                if self.before is None:
                    self.before = zero.z
                    return
                previous, seconds_previous = _timed(how, case, self.before, settings.runs)
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
        solved = [_solved(sol.z, case, settings) for sol in (zero, previous)]
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


def _solved(z: Tensor, case: Case, settings: Settings) -> Tensor:
    with torch.no_grad():
        return relative_residual(z.double(), case.exact(z.double())) <= settings.accepted
