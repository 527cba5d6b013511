"""Few combinations of values that hold every pair of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

__all__ = ["pairwise"]


def pairwise(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return dicts of one value for each name, such that every two values of two names stand together in one of them.

    Greedy: each dict begins with a pair that is still missing and takes, name by name, the value that adds most pairs.
    """
    missing = {
        (a, i, b, j) for a, b in combinations(values, 2) for i in range(len(values[a])) for j in range(len(values[b]))
    }
    found = []
    while missing:
        a, i, b, j = min(missing, key=str)
        chosen = {a: i, b: j}
        for name in values:
            if name not in chosen:
                chosen[name] = max(range(len(values[name])), key=lambda k, name=name: _new(missing, chosen, name, k))
        missing -= {(a, chosen[a], b, chosen[b]) for a, b in combinations(values, 2)}
        found.append({name: values[name][k] for name, k in chosen.items()})
    return found


def _new(missing: set[tuple[str, int, str, int]], chosen: Mapping[str, int], name: str, k: int) -> int:
    """Return how many missing pairs value ``k`` of ``name`` makes with those chosen."""
    pairs = ((name, k, other, v) for other, v in chosen.items())
    return sum((a, i, b, j) in missing or (b, j, a, i) in missing for a, i, b, j in pairs)
