"""Problems of the literature, written from their mathematics; a file per family."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from deqlm.comparison.problems.literature.algorithms import algorithm_problems
from deqlm.comparison.problems.literature.base import FORMS, Form, LiteratureProblem
from deqlm.comparison.problems.literature.boundary_value import boundary_values
from deqlm.comparison.problems.literature.classics import classic_problems
from deqlm.comparison.problems.literature.integral import h_equations
from deqlm.comparison.problems.literature.minpack import minpack_problems
from deqlm.comparison.problems.literature.scipy_tests import scipy_problems
from deqlm.comparison.problems.literature.spectral import spectral_problems
from deqlm.comparison.problems.literature.systems import small_systems
from deqlm_solvers.core.checks import suggest

__all__ = ["FORMS", "Form", "LiteratureProblem", "literature", "literature_problems"]

FAMILIES = (
    *(minpack_problems, small_systems, spectral_problems, scipy_problems),
    *(boundary_values, h_equations, algorithm_problems, classic_problems),
)


def literature_problems() -> Iterator[LiteratureProblem]:
    """Yield all problems, always the same.

    Examples:
        >>> next(literature_problems()).name
        'rosenbrock_2'
    """
    return chain.from_iterable(family() for family in FAMILIES)


def literature(name: str) -> LiteratureProblem:
    """Return a problem by its name.

    Raises:
        KeyError: there is none of this name; the message has the nearest one.

    Examples:
        >>> literature("chebyquad_8").least
        0.0593...
    """
    known = {problem.name: problem for problem in literature_problems()}
    if name not in known:
        raise KeyError(f"unknown problem {name!r} of the literature: {suggest(name, known)}")
    return known[name]
