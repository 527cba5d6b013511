"""Rules that decide per row from comparisons of its columns, looked up by the outcomes of all comparisons at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Decision", "Table", "tabulate"]


class Decision(NamedTuple):
    """What rules make of outcomes.

    Attributes:
        flags: bool each.
        kept: the new value of every kept column: the name of a column, or ``(where, this, else that)`` of such values.
    """

    flags: tuple[Tensor, ...]
    kept: Mapping[str, Value]


Value = str | tuple[Tensor, "Value", "Value"]


class Table(NamedTuple):
    """Comparisons, and for each of their outcomes the flags, and the columns from which the kept ones are taken.

    A row costs ten operations, however many rules there are; rules that work on columns one by one cost one each.
    """

    left: Tensor
    factor: Tensor
    right: Tensor
    place: Tensor
    flags: Tensor
    sources: Tensor

    def decide(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return the flags of rows and their new kept columns, (B, flags) bool and (B, kept). columns: (B, columns)."""
        right = columns.index_select(1, self.right) * self.factor
        outcome = ((columns.index_select(1, self.left) <= right) * self.place).sum(1)
        return self.flags.index_select(0, outcome), columns.gather(1, self.sources.index_select(0, outcome))


def tabulate(
    tests: Mapping[str, tuple[str, float, str]],
    rules: Callable[[SimpleNamespace], Decision],
    columns: Sequence[str],
    device: torch.device,
) -> Table:
    """Return the table of ``rules`` for all outcomes.

    Args:
        tests: left, factor and right of every comparison left <= factor right, by name.
        rules: called once, with one bool of all outcomes for each of ``tests``, by its name.
        columns: names of the columns.
        device: of the table.
    """
    with torch.device("cpu"):
        lefts, factors, rights = zip(*tests.values(), strict=True)
        place = 2 ** torch.arange(len(tests))
        outcomes = torch.arange(2 ** len(tests))[:, None].bitwise_and(place) > 0
        decision = rules(SimpleNamespace(**dict(zip(tests, outcomes.unbind(1), strict=True))))
        made = Table(
            left=torch.tensor([columns.index(name) for name in lefts]),
            factor=torch.tensor(factors, dtype=torch.float64),
            right=torch.tensor([columns.index(name) for name in rights]),
            place=place,
            flags=torch.stack(decision.flags, dim=1),
            sources=torch.stack([_source(value, columns).expand(len(outcomes)) for value in decision.kept.values()], 1),
        )
    return Table(*(t.to(device) for t in made))


def _source(value: Value, columns: Sequence[str]) -> Tensor:
    """Return the number of the column that holds the value, for every outcome."""
    if isinstance(value, str):
        return torch.tensor(columns.index(value))
    where, this, that = value
    return torch.where(where, _source(this, columns), _source(that, columns))
