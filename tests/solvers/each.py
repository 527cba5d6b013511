"""Parametrisations of tests over the registered update rules, by what may be asked of them."""

from __future__ import annotations

import pytest

from deqlm_solvers import SOLVERS, StepSolver

__all__ = [
    "UNSHORTENED",
    "each",
    "each_plain",
    "each_that_begins_plainly",
    "each_that_solves",
    "each_that_solves_plainly",
]

STEP = [name for name in SOLVERS if issubclass(SOLVERS[name], StepSolver)]
PLAIN = [name for name in STEP if not SOLVERS[name].steps_evaluate]
SOLVES = {name for name in STEP if "known_answers" in SOLVERS[name].guarantees}
UNSHORTENED = ("fixed_point", "momentum", "noisy", "reversible")
"""Rules that have no shorter step to try."""

each = pytest.mark.parametrize("name", STEP)
each_that_solves = pytest.mark.parametrize("name", [name for name in STEP if name in SOLVES])
each_plain = pytest.mark.parametrize("name", PLAIN)
"""Solvers that need f alone, and no more than a call of it per step."""
each_that_solves_plainly = pytest.mark.parametrize("name", [name for name in PLAIN if name in SOLVES])
each_that_begins_plainly = pytest.mark.parametrize(
    "name", [name for name in PLAIN if name not in ("noisy", "reversible")]
)
"""Their first step is z <- f(z)."""
