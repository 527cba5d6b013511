"""Solves the problems of the literature with everybody, and judges by the residual of what comes back."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from deqlm.comparison.literature.contenders import TOLERANCE, Contender, contenders
from deqlm.comparison.literature.entry import LiteratureEntry, LiteratureRow
from deqlm.comparison.literature.result import LiteratureComparison
from deqlm.comparison.problems.literature import LiteratureProblem, literature, literature_problems
from deqlm.comparison.recorder import CountingMap
from deqlm.comparison.run import compare_on_all, one_line
from deqlm.comparison.settings import Settings, SettingsOptions
from deqlm.comparison.spec import to_list
from deqlm.reporting.progress import Progress
from deqlm_solvers import Solver

__all__ = ["compare_literature", "within_tolerance"]

SLACK = 1.05


def compare_literature(
    problems: Iterable[str | LiteratureProblem] | str | None = None,
    solvers: Iterable[str | Mapping[str, Any] | Solver] | str | None = None,
    **settings: Unpack[SettingsOptions],
) -> LiteratureComparison:
    """Solve problems of the literature in float64 to ||F(z)|| <= 1e-8, with every solver as it comes.

    A system F(z) = 0 is given to our solvers and torchdeq's as z = z - F(z) and as z = z + F(z): nobody knows the
    better sign before. scipy's methods take F itself, or z - f(z). Ours may make 500 evaluations, or as many as 300
    dense Jacobians take, up to 10,000; scipy's have their own budgets, up to 10,000. Solved is what has a true residual
    within 1.05 times the tolerance, whatever the solver says.

    Args:
        problems: names, problems, or one name; None takes all.
        solvers: specs, dicts or objects, "scipy.hybr", "scipy.lm", "scipy.df-sane", "scipy.krylov", "scipy.trf"; None
            takes ours and all peers.
        **settings: of the fields of `Settings` those that published problems do not say: ``threads``, ``progress``.

    Returns:
        `LiteratureComparison`: ``print`` it, or read its fields. After Ctrl-C it holds what was done.

    Raises:
        KeyError: an unknown name; the message has the nearest one.
        TypeError, ValueError: a bad option, one without meaning here, or a solver asked for twice.

    Examples:
        >>> from deqlm.comparison import compare_literature
        >>> result = compare_literature("dottie,boggs", "newton", progress=False)
        >>> [(entry.form, entry.outcome) for entry in result["boggs"].entries]
        [('z - F', 'solved'), ('z + F', 'solved')]
    """
    for name in Settings.fixed(settings):
        raise ValueError(f"{name} has no meaning for problems of the literature, they say it themselves; leave it out")
    fixed = replace(Settings.of(**settings), dtype=torch.float64, repeats=1)
    asked = to_list(problems)
    everything = list(literature_problems()) if asked is None else []
    chosen = everything or [literature(p) if isinstance(p, str) else p for p in asked or []]
    rivals = contenders(solvers)

    def compare_on(problem: LiteratureProblem, result: LiteratureComparison, bar: Progress) -> None:
        row = LiteratureRow(
            problem.name, problem.source, *problem.start.shape, max_iter=problem.max_iter, least=problem.least
        )
        result.problems.append(row)
        for rival in rivals:
            bar.step(f"{problem.name}  {rival.label}")
            row.entries += [_entry(rival, problem, form) for form in rival.forms(problem)]

    return compare_on_all(chosen, fixed, LiteratureComparison, compare_on, len(chosen) * len(rivals))


def within_tolerance(problem: LiteratureProblem, z: Tensor) -> bool:
    """Say whether ||F(z)|| <= 1e-8 in every row, give or take 5 % and what rounding z - F(z) does to F.

    The tolerance is absolute, in the units of the published problem: a relative one would take any far point of a
    function that grows, and F = 0 has no size of its own.
    """
    rounding = torch.finfo(torch.float64).eps * torch.linalg.vector_norm(z.double(), dim=1)
    return bool((problem.residual(z) <= SLACK * TOLERANCE + rounding).all())


def _entry(rival: Contender, problem: LiteratureProblem, form: str) -> LiteratureEntry:
    entry = LiteratureEntry(rival.label, form)
    counted = CountingMap(problem.system if rival.takes_system else problem.map(form))
    begun = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            z, entry.word = rival.solve(problem, counted)
    except ImportError as error:
        entry.outcome, entry.message = "not installed", one_line(error)
    except Exception as error:  # a peer may raise anything
        entry.message = one_line(error)
    else:
        entry.outcome = "solved" if within_tolerance(problem, z) else "unsolved"
        entry.residual = problem.residual(z).max().item()
    entry.evaluations = counted.evaluations
    entry.seconds = time.process_time() - begun
    return entry
