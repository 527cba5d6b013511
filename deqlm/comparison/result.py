"""What every comparison returns: entries per problem, and how they become a table, plain data and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from deqlm.comparison.record import VERSION, Files, finite
from deqlm.reporting.table import NARROW, WIDTH, aligned, explained, problem_block, shortened, with_remarks
from deqlm_solvers.core.checks import suggest

__all__ = ["Column", "EntryBase", "Result", "Row", "position"]

LONGEST_NAME = 34


class EntryBase:
    """What all entries have: who, what came of it, and a message; subclasses are dataclasses.

    Attributes:
        solver: its label, as one would type it.
        outcome: what came of it.
        message: what was raised, or which package is missing; one line.
    """

    solver: str
    outcome: str
    message: str

    @property
    def name(self) -> str:
        """Label of who was compared."""
        return self.solver

    @property
    def ran(self) -> bool:
        """True when something was returned."""
        return self.outcome == "ran"

    @property
    def said(self) -> str:
        """A line below the table, or nothing."""
        return f"{self.name} {self.outcome}: {self.message}" if self.message else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; infinities and NaN become None."""
        return {key: finite(value) for key, value in vars(self).items()}


E = TypeVar("E", bound=EntryBase)


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        head: its name.
        show: what it shows of a problem and an entry.
        left: its cells stand to the left.
        always: it shows something of an entry that did not run, too.
        where: whether a problem has it; None for every problem.
        spare: left out where the table would be too wide, the highest first; 0 stays.
    """

    head: str
    show: Callable[[Any, Any], str]
    left: bool = False
    always: bool = False
    where: Callable[[Any], bool] | None = None
    spare: int = 0

    def cell(self, problem: Any, entry: EntryBase) -> str:
        """Return what stands in the line of an entry."""
        return self.show(problem, entry) if entry.ran or self.always else "-"


def name_column(head: str) -> Column:
    """Return the first column of a table."""
    return Column(f"  {head}", lambda _, entry: "  " + shortened(entry.name, LONGEST_NAME), left=True, always=True)


def last_column(show: Callable[[Any], str]) -> Column:
    """Return the last column: a remark on an entry that ran, or why another did not."""
    return Column("", lambda _, e: show(e) if e.ran else e.outcome.upper(), left=True, always=True)


@dataclass
class Row(Generic[E]):
    """A problem of a comparison.

    Attributes:
        label, title: name as typed, and what the problem tests.
        rows, unknowns: shape (B, N) of the state.
        message: why the problem was not compared; then there are no entries.
        entries: one per contender, in the order asked for.
    """

    label: str
    title: str
    rows: int = 0
    unknowns: int = 0
    message: str = field(default="", kw_only=True)
    entries: list[E] = field(default_factory=list, kw_only=True)

    contender: ClassVar[str] = "solver"
    absent: ClassVar[str] = "not compared"

    def entry(self, name: str) -> E:
        """Return the entry of a label.

        Raises:
            KeyError: nobody of this label in this comparison; the message names the nearest one.
        """
        return self.entries[position(self.contender, name, [entry.name for entry in self.entries])]

    def facts(self, width: int) -> list[str]:
        """Return the lines above the table, of at most ``width``."""
        return []


R = TypeVar("R", bound=Row[Any])


@dataclass
class Result(Generic[R]):
    """A table (`str`), plain data (`to_dict`), files (`save`), problems by label (index).

    A subclass says what its entries look like: ``columns`` and ``legend`` of the table, ``files`` with its plots. Its
    own columns, or other `blocks`, are all that makes one comparison differ from another here.

    Attributes:
        problems: one row per problem, in the order asked for.
        settings: dtype, device, batch, seed, repeats, threads as used.
        environment: versions, hardware, commit.
        seconds: how long the comparison took.
        interrupted: True when it was stopped by Ctrl-C; what was done until then is there.
    """

    columns: ClassVar[tuple[Column, ...]] = ()
    legend: ClassVar[tuple[tuple[str, str], ...]] = ()
    files: ClassVar[Files]
    live: ClassVar[bool] = True
    """Whether the report is a block per problem, which can be shown as soon as it is made."""

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

    def __str__(self) -> str:
        return self.table()

    def table(self, width: int = NARROW) -> str:
        """Return the report: a block per problem, what they come to, what the columns mean, and whether it is whole.

        Args:
            width: columns, >= 80; where there are few, columns that matter least are left out of a table.
        """
        return "\n\n".join([*self.blocks(width), *self.ending(width)])

    def ending(self, width: int) -> list[str]:
        """Return the parts of the report that stand below its `blocks`."""
        cut = ["interrupted: this is what was done until then"] if self.interrupted else []
        return [*self.verdict(width), explained(self.legend, width), *cut]

    def verdict(self, width: int) -> list[str]:
        """Return what all problems together come to, in parts."""
        return []

    @property
    def contenders(self) -> list[str]:
        """Labels of all that were compared, in the order asked for."""
        return list(dict.fromkeys(entry.name for problem in self.problems for entry in problem.entries))

    def blocks(self, width: int) -> list[str]:
        """Return the parts of the table: one per problem."""
        return [self.block(problem, width) for problem in self.problems]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; infinities and NaN become None."""
        return {
            "record": self.files.command,
            "version": VERSION,
            "environment": self.environment,
            "settings": self.settings,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "problems": [
                {
                    **{key: value for key, value in vars(problem).items() if key != "entries"},
                    "entries": [entry.to_dict() for entry in problem.entries],
                }
                for problem in self.problems
            ],
        }

    def save(self, folder: str | Path, plots: bool = True) -> list[Path]:
        """Write JSON, the table as text, and the plots (SVG and PNG); return what was written.

        Files are named after the comparison: ``compare.json``, ``gradients.json`` or ``starts.json`` and so on. A
        former run in ``folder`` is replaced: files that its JSON names and this one lacks are removed.

        Raises:
            ImportError: plots are wanted and matplotlib is missing.
        """
        return self.files.save(self.to_dict(), self.table(WIDTH), Path(folder), plots)

    def block(self, problem: R, width: int) -> str:
        """Return what the report says of one problem."""
        *columns, last = [column for column in self.columns if column.where is None or column.where(problem)]
        remarks = ["", *(last.cell(problem, entry) for entry in problem.entries)]
        table = with_remarks(_fitting(columns, problem, width), remarks, width)
        said = [entry.said for entry in problem.entries if entry.said]
        why = f"{problem.absent}: {problem.message}" if problem.message else ""
        head = f"{problem.label}: {problem.title}"
        return problem_block(head, [*problem.facts(width), *table], said, why, width)


def _fitting(columns: list[Column], problem: Row[Any], width: int) -> list[str]:
    """Return the lines of a table, without the columns that can be spared where it would be too wide."""
    rows = [[column.head for column in columns]]
    rows += [[column.cell(problem, entry) for column in columns] for entry in problem.entries]
    lines = aligned(rows, [i for i, column in enumerate(columns) if column.left])
    if max(map(len, lines)) <= width or not any(column.spare for column in columns):
        return lines
    most = max(columns, key=lambda column: column.spare)
    return _fitting([column for column in columns if column is not most], problem, width)


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
