"""Who is timed: our solvers as a user calls them, and torchdeq's, each to an equal true residual."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import deqlm
from benchmarks.comparison.maps import SpeedMap, true_residual
from deqlm_solvers import Anderson, Broyden, FixedPoint, Options, Stop

__all__ = ["DEFAULT", "PEERS", "Contender", "Outcome", "contenders", "ours", "outcome_of", "peer"]

DEFAULT = "deqlm"
"""Label of `deqlm.solve` with nothing said but the tolerance."""

PEERS = ("torchdeq.fixed_point_iter", "torchdeq.anderson", "torchdeq.broyden")

TIGHTER = (1.0, 0.6, 0.3, 0.1)
"""Factors on a contender's tolerance, tried until the true residual of what it returns is within tolerance."""

SLACK = 1.05


@dataclass(frozen=True, eq=False)
class Contender:
    """Something that solves a map; ``solve(f, z0, tol)`` returns z and, where there is one, the `Solution`."""

    label: str
    solve: Callable[[SpeedMap, float], tuple[Tensor, Any]]


@dataclass
class Outcome:
    """What one contender made of one map.

    Attributes:
        label: the contender.
        solved: every returned row is within 1.05 tolerance by its true residual.
        residual: largest true residual over rows.
        evaluations: calls of f.
        tol: tolerance it was given, so that its true residual is within the one asked for.
        seconds: one sample per round.
        picked: which methods gave the answers, and how many rows of each; empty where it is not said.
        message: what was raised.
    """

    label: str
    solved: bool = False
    residual: float = float("inf")
    evaluations: int = 0
    tol: float = 0.0
    seconds: list[float] | None = None
    picked: dict[str, int] | None = None
    message: str = ""


def contenders() -> Iterator[Contender]:
    """Yield everybody: the default, each of our solvers by name and by realisation, torchdeq's three."""
    yield ours(DEFAULT)
    yield ours("deqlm, test_every=auto", test_every="auto")
    for cls in (Anderson, FixedPoint, Broyden):
        yield ours(cls().name, cls())
        if "impl" in cls.__dataclass_fields__:  # type: ignore[attr-defined]
            for impl in ("torch", "cpp"):
                yield ours(f"{cls().name}, impl={impl}", lambda cls=cls, impl=impl: cls(impl=impl))  # type: ignore
    yield ours("fixed_point, test_every=auto", FixedPoint(), test_every="auto")
    for name in PEERS:
        yield peer(name)


def ours(label: str, solver: Any = None, **stop: Any) -> Contender:
    """Return `deqlm.solve` under no_grad, with a solver (or a maker of one) and fields of `Stop`."""

    def solve(m: SpeedMap, tol: float) -> tuple[Tensor, Any]:
        chosen = solver() if callable(solver) and not isinstance(solver, Options) else solver
        given: dict[str, Any] = {} if chosen is None else {"solver": chosen}
        until = Stop(max_iter=m.max_iter, rtol=tol, **stop)
        with torch.no_grad():
            sol = deqlm.solve(m.f, m.z0, args=m.args, stop=until, on_failure="ignore", **given)
        return sol.z, sol

    return Contender(label, solve)


def peer(name: str) -> Contender:
    """Return one of torchdeq's solvers with its own defaults, called directly and not through an adapter."""

    def solve(m: SpeedMap, tol: float) -> tuple[Tensor, Any]:
        from torchdeq.solver import get_solver

        function = get_solver(name.partition(".")[2])
        with torch.no_grad():
            z, _, _ = function(m.closed, m.z0, max_iter=m.max_iter, tol=tol, stop_mode="rel")
        return z, None

    return Contender(name, solve)


def outcome_of(contender: Contender, m: SpeedMap, ignoring: Tensor | None = None) -> Outcome:
    """Solve once with counting, tightening the tolerance until the true residual is within the one asked for.

    Args:
        contender: who solves.
        m: the map.
        ignoring: rows that have no solution, bool (B,).
    """
    exact = m.exact()
    found = Outcome(contender.label)
    for factor in TIGHTER:
        counted, calls = _counted(m)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                z, sol = contender.solve(counted, factor * m.tol)
        except Exception as error:  # a peer may raise anything
            found.message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return found
        residual = true_residual(exact, z)
        if ignoring is not None:
            residual = residual[~ignoring]
        worst = residual.max().item()
        first = found.tol == 0
        solved = worst <= SLACK * m.tol
        if first or solved:
            found.residual, found.evaluations, found.tol = worst, calls[0], factor * m.tol
            found.solved, found.picked = solved, _picked(sol)
        if solved or calls[0] >= m.max_iter:
            return found
    return found


def _counted(m: SpeedMap) -> tuple[SpeedMap, list[int]]:
    calls = [0]

    class Counted(SpeedMap):
        @property
        def f(self) -> Callable[..., Tensor]:
            inner = super().f

            def count(*given: Tensor) -> Tensor:
                calls[0] += 1
                return inner(*given)

            return count

        @property
        def closed(self) -> Callable[[Tensor], Tensor]:
            f, args = self.f, self.args
            return lambda z: f(z, *args)

    return Counted(**{key: getattr(m, key) for key in m.__dataclass_fields__}), calls


def _picked(sol: Any) -> dict[str, int] | None:
    """Return rows per method, where the solution says which method gave each row's answer."""
    picked = getattr(sol, "picked", None)
    if picked is None:
        return None
    return {name: int((picked == i).sum()) for i, name in enumerate(sol.choices) if bool((picked == i).any())}
