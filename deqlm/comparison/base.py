"""What every comparison returns: rows per problem, and how they become a table, plain data and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from deqlm_solvers.core.checks import suggest

__all__ = ["Result", "Row", "position"]


@dataclass
class Row:
    """A problem of a comparison.

    Attributes:
        label, title: name as typed, and what the problem tests.
        rows, unknowns: shape (B, N) of the state.
    """

    label: str
    title: str
    rows: int = 0
    unknowns: int = 0


R = TypeVar("R", bound=Row)


@dataclass
class Result(ABC, Generic[R]):
    """A table (`str`), plain data (`to_dict`), files (`save`), problems by label (index).

    Attributes:
        kind: name of the files; set by the class.
        problems: one row per problem, in the order asked for.
        settings: dtype, device, batch, seed, repeats, threads as used.
        environment: versions, hardware, commit.
        seconds: how long the comparison took.
        interrupted: True when it was stopped by Ctrl-C; what was done until then is there.
    """

    kind: ClassVar[str]

    problems: list[R] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False

    def __getitem__(self, problem: str) -> R:
        """Return the result of a problem label.

        Raises:
            KeyError: no such problem in this comparison; the message names the nearest one.
        """
        return self.problems[position("problem", problem, [each.label for each in self.problems])]

    @abstractmethod
    def __str__(self) -> str: ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; infinities and NaN become None."""
        from deqlm.comparison.record import record_of

        return record_of(self)

    def save(self, folder: str | Path, plots: bool = True) -> list[Path]:
        """Write JSON, the table as text, and the plots (SVG and PNG); return what was written.

        Files are named after the comparison: ``compare.json``, ``gradients.json`` or ``starts.json`` and so on. A
        former run in ``folder`` is replaced: files that its JSON names and this one lacks are removed.

        Raises:
            ImportError: plots are wanted and matplotlib is missing.
        """
        from deqlm.comparison.record import save

        return save(self, Path(folder), plots)


def position(kind: str, name: str, labels: Sequence[str]) -> int:
    """Return where a label stands.

    Raises:
        KeyError: it is not there; the message names the nearest one, and a name without options stands for its first
            label.

    Examples:
        >>> position("solver", "anderson", ["fixed_point", "anderson"])
        1
        >>> position("problem", "symmetric", ["two_cycle", "symmetric:rho=0.9,unknowns=8"])
        Traceback (most recent call last):
        KeyError: "no problem 'symmetric' in this comparison: did you mean 'symmetric:rho=0.9,unknowns=8'?"
    """
    if name in labels:
        return labels.index(name)
    near = next((label for label in labels if label.partition(":")[0] == name), None)
    tail = suggest(name, list(labels)) if near is None else f"did you mean {near!r}?"
    raise KeyError(f"no {kind} {name!r} in this comparison: {tail}")
