"""Sums over steps: losses, scores, and what the solver spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from deqlm_solvers import Solution
from deqlm_solvers.core.cost import Cost

__all__ = ["Tally"]


class Tally:
    """What some steps added up to.

    Attributes:
        steps: how many.
        sums: of what was measured on every step, by name.
        cost: of the forward solves.
        adjoint: of the backward solves.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.sums: dict[str, float] = {}
        self.cost = Cost()
        self.adjoint = Cost()

    def count(self, solution: Solution | None) -> None:
        """Add the cost of a step whose backward has run; nothing for a model that solves nothing."""
        if solution is not None:
            self.cost += solution.cost
            if solution.adjoint is not None:
                self.adjoint += solution.adjoint.cost

    def measure(self, values: Mapping[str, float]) -> None:
        """Add what was measured on a step."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Return the means per step."""
        return {name: total / self.steps for name, total in self.sums.items()}

    def costs(self) -> dict[str, int]:
        """Return what both kinds of solves cost, those of backward under "adjoint_"."""
        spent = asdict(self.cost)
        return {**spent, **{f"adjoint_{name}": value for name, value in asdict(self.adjoint).items()}}

    def state_dict(self) -> dict[str, Any]:
        """Return plain data."""
        costs = {"cost": asdict(self.cost), "adjoint": asdict(self.adjoint)}
        return {"steps": self.steps, "sums": dict(self.sums), **costs}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tally:
        """Return the tally whose state was saved."""
        made = cls()
        made.steps, made.sums = state["steps"], dict(state["sums"])
        made.cost, made.adjoint = Cost(**state["cost"]), Cost(**state["adjoint"])
        return made
