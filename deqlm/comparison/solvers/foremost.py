"""Which solvers stand out in a plot of many: the foremost have colours, the others are grey."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deqlm.reporting.style import PALETTE, Look, family, looks

__all__ = ["GREY", "foremost", "looks_of"]

GREY = "#b3b3b3"
MOST = 7
"""Colours in a plot that has others in grey; one with no more curves than the palette has colours needs no grey."""


def foremost(ratios: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the solvers that have a colour, in the order in which they are given: all of a few, else seven.

    These are the best of every family of peers and then the best of the rest. A solver is better that solves more
    problems, and among equals the one whose costs are nearer to the least.

    Args:
        ratios: per solver its cost on each problem that it solves, over the least of all solvers.
    """
    if len(ratios) <= len(PALETTE):
        return list(ratios)
    ranked = sorted(ratios, key=lambda name: _rank(ratios[name]))
    peers = {family(name): name for name in reversed(ranked) if family(name)}
    best = sorted(peers.values(), key=ranked.index)[: MOST // 2]
    rest = [name for name in ranked if name not in peers.values()]
    chosen = {*best, *rest[: MOST - len(best)]}
    return [name for name in ratios if name in chosen]


def looks_of(ratios: Mapping[str, Sequence[float]]) -> dict[str, Look]:
    """Return a look per solver, those in grey first, so that what is drawn later lies above them."""
    chosen = looks(foremost(ratios))
    styles = looks(list(ratios))
    grey = {name: Look(GREY, styles[name].linestyle, 0.9) for name in ratios if name not in chosen}
    return {**grey, **chosen}


def _rank(ratios: Sequence[float]) -> tuple[int, float]:
    return -len(ratios), sum(map(math.log, ratios)) / max(1, len(ratios))
