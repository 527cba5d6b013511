"""What a comparison of solvers comes to, in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from deqlm.comparison.solvers.entry import Entry, ProblemResult
from deqlm.reporting.table import duration

__all__ = ["verdict"]

MOST = 4
"""Names that are listed before the others are counted."""
PLAIN = "fixed_point"
"""The solver whose run tells what kind of map it was."""
FAST, SLOW = 5, 40
"""Evaluations that plain iteration takes per digit, up to which a map contracts fast, and from which it does slowly."""
FLOOR = 1e-16
"""Smallest residual whose digits are counted."""


def verdict(problems: Sequence[ProblemResult], solvers: Sequence[str]) -> list[str]:
    """Return sentences: who is robust, who is cheap, what kind of map it was, and what to call next.

    Examples:
        >>> from deqlm.comparison import compare
        >>> result = compare("symmetric:rho=0.5", "fixed_point,anderson", repeats=1, progress=False)
        >>> verdict(result.problems, result.solvers)[1]
        'Fewest evaluations where they solve: anderson.'
    """
    built = [problem for problem in problems if problem.entries]
    ran = [name for name in solvers if any(entry.ran for entry in _of(name, built))]
    if not ran:
        return []
    solved = {name: sum(entry.outcome == "solved" for entry in _of(name, built)) for name in ran}
    most = max(solved.values())
    if most == 0:
        return [f"No solver solved {_what(built)}.", *_kind(built), _next(built, None)]
    robust = [name for name in ran if solved[name] == most]
    evaluations = _ratio(built, lambda entry: float(entry.evaluations))
    seconds = _ratio(built, lambda entry: entry.seconds)
    cheapest = _least([name for name in ran if solved[name]], evaluations)
    robust.sort(key=evaluations)
    said = [f"Most robust here: {_names(robust)} ({_share(most, len(built))})."]
    said.append(f"Fewest evaluations where they solve: {_names(cheapest)}.")
    if any(entry.times for problem in built for entry in problem.entries):
        fastest = min((name for name in ran if solved[name]), key=seconds)
        said.append(f"Least time where it solves: {fastest}{_time_of(fastest, built)}.")
    return [*said, *_kind(built), _next(built, min(robust, key=seconds))]


def _of(name: str, problems: Sequence[ProblemResult]) -> list[Entry]:
    return [entry for problem in problems for entry in problem.entries if entry.solver == name]


def _what(problems: Sequence[ProblemResult]) -> str:
    return problems[0].label if len(problems) == 1 else f"any of the {len(problems)} problems"


def _share(solved: int, count: int) -> str:
    if solved < count:
        return f"{solved} of {count} problems solved"
    return "all rows solved" if count == 1 else f"all {count} problems solved"


def _names(names: Sequence[str]) -> str:
    more = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {more} more" if more > 0 else "")


def _time_of(name: str, problems: Sequence[ProblemResult]) -> str:
    return f" ({duration(_of(name, problems)[0].seconds)})" if len(problems) == 1 else ""


def _least(names: Sequence[str], cost: Callable[[str], float]) -> list[str]:
    least = min(map(cost, names))
    return [name for name in names if cost(name) == least]


def _ratio(problems: Sequence[ProblemResult], value: Callable[[Entry], float | None]) -> Callable[[str], float]:
    """Return the mean cost of a solver over the least of all, where it solves."""

    def of(name: str) -> float:
        ratios = []
        for problem in problems:
            costs = {e.solver: value(e) for e in problem.entries if e.outcome == "solved"}
            least, mine = min(filter(None, costs.values()), default=None), costs.get(name)
            if least and mine:
                ratios.append(mine / least)
        return statistics.geometric_mean(ratios) if ratios else float("inf")

    return of


def _kind(problems: Sequence[ProblemResult]) -> list[str]:
    """Return what plain iteration tells of a map that is the user's."""
    mine = [problem for problem in problems if problem.yours]
    return [said for problem in mine for entry in problem.entries if entry.solver == PLAIN for said in _told(entry)]


def _told(entry: Entry) -> list[str]:
    if not entry.ran:
        return []
    if entry.outcome == "solved":
        pace = entry.evaluations / max(1.0, -math.log10(max(entry.residual, FLOOR)))
        how = "fast" if pace <= FAST else "slowly" if pace >= SLOW else "at a middling rate"
        return [f"Your map contracts {how}: plain iteration makes {pace:.0f} evaluations per digit."]
    states = entry.statuses
    if states.get("NONFINITE") or states.get("DIVERGED"):
        return ["Your map does not contract: plain iteration runs away."]
    return ["Your map contracts too slowly for plain iteration, or not at all."]


def _next(problems: Sequence[ProblemResult], best: str | None) -> str:
    mine = next((problem.label for problem in problems if problem.yours), None)
    if best is None:
        ask = f"`deqlm diagnose {mine}`" if mine and ":" in mine else "print(deqlm.diagnose(f, z0))"
        return f"To go on: {ask} says why."
    where = f" (for {mine})" if mine and ":" in mine else ""
    return f'To go on: deqlm.DEQ(layer, solver="{best}"){where}; print(deqlm.diagnose(deq, x)) looks closer.'
