"""Who solves the problems of the literature: our solvers and torchdeq's on z = f(z), scipy's on F(z) = 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deqlm.comparison.problems.literature import LiteratureProblem
from deqlm.comparison.spec import to_list, to_rows
from deqlm_solvers import SOLVERS, Map, Solve, Solver, Status, Stop
from deqlm_solvers.adapters.extra import load_extra

__all__ = ["PEERS", "TOLERANCE", "Contender", "contenders", "is_peer", "own"]

TOLERANCE = 1e-8
"""Largest ||F(z)|| of a solved problem, in the units in which it is published."""

SYSTEM = "F"
"""The form of a problem for those who solve F(z) = 0."""

TORCHDEQ = ("torchdeq.fixed_point_iter", "torchdeq.anderson", "torchdeq.broyden")

TIGHT = 1e-12
"""Tolerance of the peers whose test is not one of ||F||, so that they do not end early."""

METHODS: dict[str, dict[str, Any]] = {
    "hybr": {"options": {"xtol": TIGHT}},
    "lm": {"options": {"xtol": TIGHT, "ftol": TIGHT}},
    "df-sane": {"options": {"fatol": TOLERANCE, "ftol": 0.0}},
    "krylov": {"options": {"fatol": TOLERANCE / 10}},
}
"""Methods of scipy.optimize.root, and how each is told our tolerance; all else is its default."""

LEAST_SQUARES = "scipy.trf"
"""scipy.optimize.least_squares, a trust region for min ||F||, told the tight tolerance; it does not speak of roots."""

SYSTEMS = (*(f"scipy.{method}" for method in METHODS), LEAST_SQUARES)
PEERS = (*SYSTEMS, *TORCHDEQ)

FIRST = ("fixed_point", "anderson", "broyden", "newton", "newton_krylov", "fallback")
NEEDS_TOKENS = ("deer",)

MOST = 10_000
"""Evaluations after which a peer is ended whose own budget is larger."""

TORCHDEQ_MOST = 500
"""The same for torchdeq, whose own budget is 40, and whose time and memory grow with it."""


@dataclass(frozen=True, eq=False)
class Contender:
    """Something that solves the problems.

    Attributes:
        label: as one would type it.
        solve: takes a problem, its form and the function to call; returns the point and its own word, "CONVERGED" or
            another.
        takes_system: it solves F(z) = 0 and has no need of forms.
    """

    label: str
    solve: Callable[[LiteratureProblem, Map], tuple[Tensor, str]]
    takes_system: bool = False

    def forms(self, problem: LiteratureProblem) -> tuple[str, ...]:
        """Return the ways in which it is given a problem."""
        return (SYSTEM,) if self.takes_system else problem.forms


def own() -> tuple[str, ...]:
    """Return the names of our solvers, and of plugins, that take any map; those of other libraries have a dot."""
    names = [name for name in SOLVERS if "." not in name and name not in NEEDS_TOKENS]
    return tuple(sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)))


def is_peer(label: str) -> bool:
    """Say whether a label is that of another library: its name has a dot.

    Examples:
        >>> is_peer("scipy.hybr"), is_peer("anderson:damping=0.5")
        (True, False)
    """
    return "." in label.partition(":")[0]


def contenders(given: Iterable[str | Mapping[str, Any] | Solver] | str | None = None) -> list[Contender]:
    """Return those asked for, or all: our solvers with their defaults, and the peers.

    Raises:
        KeyError: an unknown name.
        TypeError, ValueError: bad options, or one asked for twice.

    Examples:
        >>> [one.label for one in contenders("anderson,scipy.lm")]
        ['anderson', 'scipy.lm']
    """
    asked: list[Any] = [*own(), *PEERS] if given is None else to_list(given) or []
    maps = iter(to_rows(SOLVERS, [item for item in asked if item not in SYSTEMS]))
    return [_on_system(item) if item in SYSTEMS else _on_map(*next(maps)) for item in asked]


def _on_map(label: str, make: Callable[[], Solver]) -> Contender:
    def solve(problem: LiteratureProblem, f: Map) -> tuple[Tensor, str]:
        most = min(problem.max_iter, TORCHDEQ_MOST) if label.startswith("torchdeq.") else problem.max_iter
        stop = Stop(max_iter=most, rtol=0.0, atol=TOLERANCE)
        with torch.no_grad():
            sol = Solve(make(), stop)(f, problem.start)
        # one row
        return sol.z, Status(int(sol.status)).name

    return Contender(label, solve)


def _on_system(label: str) -> Contender:
    def solve(problem: LiteratureProblem, F: Map) -> tuple[Tensor, str]:
        optimize = load_extra("scipy.optimize", "compare", label)
        calls = 0

        def vector(x: np.ndarray) -> np.ndarray:
            nonlocal calls
            calls += 1
            if calls > MOST:
                raise RuntimeError(f"more than {MOST} evaluations")
            return F(torch.from_numpy(np.array(x, dtype=np.float64))[None])[0].numpy()

        with torch.no_grad(), np.errstate(all="ignore"):
            found, word = _call(optimize, label, vector, problem.start[0].numpy())
        return torch.as_tensor(np.array(found.x, dtype=np.float64), device="cpu").reshape(1, -1), word

    return Contender(label, solve, takes_system=True)


def _call(optimize: Any, label: str, F: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> tuple[Any, str]:
    """Return what a method of scipy returns, and its word."""
    if label == LEAST_SQUARES:
        found = optimize.least_squares(F, start, xtol=TIGHT, ftol=TIGHT, gtol=TIGHT)
        return found, "MINIMUM" if found.success else "FAILED"
    method = label.partition(".")[2]
    found = optimize.root(F, start, method=method, **METHODS[method])
    return found, "CONVERGED" if found.success else "FAILED"
