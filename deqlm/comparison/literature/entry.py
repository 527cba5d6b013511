"""One solver on one form of a problem of the literature, and all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from deqlm.comparison.result import EntryBase, Row

__all__ = ["LiteratureEntry", "LiteratureRow"]


@dataclass
class LiteratureEntry(EntryBase):
    """One solver on one form of one problem.

    Attributes:
        solver, form: its label, and "z - F", "z + F", "f", or "F" for a solver of F(z) = 0.
        outcome: "solved" or "unsolved" by the true residual, "raised", "not installed".
        word: what the solver says: a `Status`, or "FAILED" or "MINIMUM" where a peer says no more.
        residual: ||F(z)||_2 of the returned point, in float64.
        evaluations: calls of the function; what a dense Jacobian takes is not a call for each product.
        seconds: of the solve.
        message: what was raised, one line.
    """

    solver: str
    form: str
    outcome: Literal["solved", "unsolved", "raised", "not installed"] = "raised"
    word: str = ""
    residual: float = math.inf
    evaluations: int = 0
    seconds: float = 0.0
    message: str = ""

    @property
    def ran(self) -> bool:
        """True when the solver returned something."""
        return self.outcome in ("solved", "unsolved")

    @property
    def false(self) -> bool:
        """True when the solver says CONVERGED of a point that is not within tolerance."""
        return self.word == "CONVERGED" and self.outcome != "solved"


@dataclass
class LiteratureRow(Row[LiteratureEntry]):
    """One problem.

    Attributes:
        label, title: its name and its source.
        max_iter: evaluations that our solvers may make.
        least: smallest ||F|| there is, where F has no root; else 0.
        entries: one per solver and form.
    """

    max_iter: int = 0
    least: float = 0.0

    def solved_by(self, solver: str, form: str | None = None) -> bool:
        """Say whether a solver solves the problem, in one form or in any."""
        mine = [e for e in self.entries if e.solver == solver]
        return any(e.outcome == "solved" for e in mine if form in (None, e.form) or e.form in ("f", "F"))
