"""Plain text of a given width: what the tables of all comparisons are made of."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Iterable, Sequence

__all__ = [
    "NARROW",
    "WIDTH",
    "aligned",
    "amount",
    "duration",
    "explained",
    "filled",
    "problem_block",
    "shortened",
    "terminal_width",
    "with_remarks",
    "wrapped",
]

WIDTH = 120
"""Columns of the widest text: files, and wide terminals."""
NARROW = 80
"""Columns of the narrowest text, and where nobody said how wide the reader's window is."""


def terminal_width() -> int:
    """Return the columns of the terminal that stdout is, 80 to 120; 80 where it is none."""
    return min(WIDTH, max(NARROW, shutil.get_terminal_size((NARROW, 24)).columns))


def problem_block(head: str, lines: Iterable[str], said: Iterable[str], why: str = "", width: int = WIDTH) -> str:
    """Return what a report says of one problem.

    Args:
        head: its name and what it tests.
        lines: facts and the table.
        said: remarks on entries, below the table.
        why: the reason for which there is nothing else to show.
        width: columns.
    """
    head = filled(head, width)
    if why:
        return "\n".join([head, *wrapped(why, width)])
    return "\n".join([head, *lines, *(line for text in said for line in wrapped(text, width))])


def explained(terms: Iterable[tuple[str, str]], width: int) -> str:
    """Return what the columns of a table mean: a term, and the words for it indented behind it.

    Examples:
        >>> print(explained([("evals", "calls of f"), ("time", "median run")], 80))
        evals  calls of f
        time   median run
    """
    terms = list(terms)
    indent = max(len(term) for term, _ in terms) + 2
    lines = (
        textwrap.fill(text, width, initial_indent=term.ljust(indent), subsequent_indent=" " * indent)
        for term, text in terms
    )
    return "\n".join(lines)


def filled(text: str, width: int) -> str:
    """Return prose on lines of at most ``width``, all but the first indented."""
    return textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False)


def with_remarks(lines: Sequence[str], remarks: Sequence[str], width: int) -> list[str]:
    """Return the lines of a table, each with its remark behind it, or below it where one line would be too long.

    Examples:
        >>> with_remarks(["anderson  12", "broyden   90"], ["", "FAILS (3 STALLED)"], 24)
        ['anderson  12', 'broyden   90', '    FAILS (3 STALLED)']
    """
    longest = max(map(len, lines))
    out = []
    for line, remark in zip(lines, remarks, strict=True):
        inline = f"{line.ljust(longest)}  {remark}" if remark else line
        if len(inline) <= width:
            out.append(inline)
        else:
            out += [line, *textwrap.wrap(remark, width, initial_indent="    ", subsequent_indent="    ")]
    return out


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Return lines with columns padded to equal width, right-aligned except ``left``; the last one is not padded."""
    count = len(rows[0])
    widths = [max(len(row[i]) for row in rows) for i in range(count)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def duration(seconds: float | None) -> str:
    """Return a time with three digits and its unit.

    Examples:
        >>> duration(0.00123), duration(-2e-6), duration(None)
        ('1.23 ms', '-2.00 us', '-')
    """
    if seconds is None:
        return "-"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(seconds) >= factor or unit == "us":
            value = seconds / factor
            digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError


def amount(value: float | None) -> str:
    """Return a residual or an error with two digits, ``inf`` or ``-``."""
    if value is None:
        return "-"
    return f"{value:.1e}" if math.isfinite(value) else "inf"


def shortened(text: str, width: int) -> str:
    """Return ``text`` cut to ``width`` with three dots."""
    return text if len(text) <= width else text[: width - 3] + "..."


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """Return ``text`` on indented lines, at most three of the widest."""
    return textwrap.wrap(
        text,
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        max_lines=3 * WIDTH // width,
        placeholder="...",
        break_on_hyphens=False,
    )
