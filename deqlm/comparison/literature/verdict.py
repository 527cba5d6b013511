"""What a run over the literature says: who solves how many, who says what is not true, where we are behind."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from deqlm.comparison.literature.contenders import is_peer
from deqlm.comparison.literature.entry import LiteratureEntry, LiteratureRow

__all__ = ["Score", "behind", "false_words", "scores", "unsolved"]

SIGNS = ("z - F", "z + F")


class Score(NamedTuple):
    """One solver over all problems.

    Attributes:
        solver: its label.
        signs: problems that it solves as z - F, and as z + F; a map f, and a solver of F(z) = 0, count in both.
        either: problems that it solves in one form at least.
        false: forms of which it says CONVERGED although their true residual is above the tolerance.
        raised: forms on which it raised.
        evaluations: median calls of the function on the forms that it solves; None where there is none.
        seconds: of all.
        installed: False where its package is missing.
    """

    solver: str
    signs: tuple[int, int]
    either: int
    false: int
    raised: int
    evaluations: float | None
    seconds: float
    installed: bool


def scores(problems: Sequence[LiteratureRow]) -> list[Score]:
    """Return a score per solver, in the order of the run."""
    return [_score(problems, solver) for solver in _solvers(problems)]


def behind(problems: Sequence[LiteratureRow]) -> list[tuple[str, str, list[str]]]:
    """Return (problem, sign, peers) for what peers solve in that form and none of our solvers does."""
    solvers = _solvers(problems)
    found = []
    for problem in problems:
        for sign in SIGNS:
            solving = [s for s in solvers if problem.solved_by(s, sign)]
            if solving and all(map(is_peer, solving)) and not all(map(is_peer, solvers)):
                found.append((problem.label, sign, solving))
    return found


def false_words(problems: Sequence[LiteratureRow]) -> list[tuple[str, LiteratureEntry]]:
    """Return (problem, entry) for every CONVERGED that is not true."""
    return [(problem.label, entry) for problem in problems for entry in problem.entries if entry.false]


def unsolved(problems: Sequence[LiteratureRow]) -> list[str]:
    """Return the problems that nobody solves in any form."""
    solvers = _solvers(problems)
    return [problem.label for problem in problems if not any(map(problem.solved_by, solvers))]


def _solvers(problems: Sequence[LiteratureRow]) -> list[str]:
    return list(dict.fromkeys(entry.solver for problem in problems for entry in problem.entries))


def _score(problems: Sequence[LiteratureRow], solver: str) -> Score:
    mine = [entry for problem in problems for entry in problem.entries if entry.solver == solver]
    good = [entry.evaluations for entry in mine if entry.outcome == "solved"]
    minus, plus = (_count(problems, lambda p, sign=sign: p.solved_by(solver, sign)) for sign in SIGNS)
    return Score(
        solver=solver,
        signs=(minus, plus),
        either=_count(problems, lambda p: p.solved_by(solver)),
        false=sum(entry.false for entry in mine),
        raised=sum(entry.outcome == "raised" for entry in mine),
        evaluations=statistics.median(good) if good else None,
        seconds=sum(entry.seconds for entry in mine),
        installed=any(entry.outcome != "not installed" for entry in mine),
    )


def _count(problems: Sequence[LiteratureRow], holds: Callable[[LiteratureRow], bool]) -> int:
    return sum(map(holds, problems))
