"""Peak memory of a solve against the number of evaluations that it may make."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.comparison.contenders import PEERS, Contender, ours, peer
from benchmarks.comparison.maps import HARD, SpeedMap, symmetric
from deqlm.comparison.memory import MemoryMeter
from deqlm_solvers import Anderson, Broyden, FixedPoint

__all__ = ["BUDGETS", "measure_growth"]

BUDGETS = (20, 200, 2000)
"""Evaluations allowed."""


def measure_growth(
    budgets: tuple[int, ...] = BUDGETS, step: Callable[[str], None] = lambda name: None
) -> list[dict[str, Any]]:
    """Return per solver the most bytes held at once, in units of the state, for each number of evaluations allowed.

    The map is a symmetric one of radius .99999, N=1024, B=4, which nobody solves in 2000 evaluations to 1e-12: all that
    are allowed are made. Every torch storage counts, f's own work does not; see `MemoryMeter`.

    Examples:
        >>> found = measure_growth(budgets=(5, 10))
        >>> found[0]["solver"], len(found[0]["states"])
        ('fixed_point', 2)
    """
    g = torch.Generator().manual_seed(0)
    a = symmetric(torch.randn(1024, 1024, generator=g, dtype=torch.float64), 0.99999).float()
    b = torch.randn(4, 1024, generator=g)
    z0 = torch.zeros(4, 1024)
    everybody = [ours(s.name, s, atol=1e-30) for s in (FixedPoint(), Anderson(), Broyden())]
    everybody += [peer(name) for name in PEERS]
    records = []
    for who in everybody:
        states: list[float | None] = []
        for most in budgets:
            step(f"memory of {who.label}, {most} evaluations")
            m = SpeedMap("symmetric .99999", HARD, "linear", (a,), (b,), z0, most)
            states.append(_peak(who, m))
        records.append({"solver": who.label, "budgets": list(budgets), "states": states})
    return records


def _peak(who: Contender, m: SpeedMap) -> float | None:
    """Return peak bytes over bytes of the state; None where the solver raises."""
    meter = MemoryMeter(most=m.max_iter)
    watched = meter.watch(m.closed)

    class Watched(SpeedMap):
        @property
        def f(self) -> Callable[..., torch.Tensor]:
            return lambda z, *args: watched(z)

        @property
        def closed(self) -> Callable[[torch.Tensor], torch.Tensor]:
            return watched

    given = Watched(m.name, m.group, m.kind, m.shared, m.args, m.z0, m.max_iter)
    try:
        with warnings.catch_warnings(), meter:
            warnings.simplefilter("ignore")
            who.solve(given, 1e-30 if who.label not in PEERS else 1e-12)
    except Exception:  # a peer may raise anything, and what is missing too
        return None
    return meter.peak / (m.z0.numel() * m.z0.element_size())
