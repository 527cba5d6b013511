"""Plain text of at most 120 columns: what the tables of all comparisons are made of."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

__all__ = ["WIDTH", "aligned", "amount", "duration", "joined", "problem_block", "shortened", "wrapped"]

WIDTH = 120


def joined(blocks: Iterable[str], legend: str, interrupted: bool) -> str:
    """Return a report: a block per problem, what the columns mean, and whether it is whole."""
    ending = ["interrupted: this is what was done until then"] if interrupted else []
    return "\n\n".join([*blocks, legend, *ending])


def problem_block(head: str, lines: Iterable[str], said: Iterable[str], why: str = "") -> str:
    """Return what a report says of one problem.

    Args:
        head: its name and what it tests.
        lines: facts and the table.
        said: remarks on entries, below the table.
        why: the reason for which there is nothing else to show.
    """
    head = shortened(head, WIDTH)
    if why:
        return "\n".join([head, *wrapped(why)])
    return "\n".join([head, *lines, *(line for text in said for line in wrapped(text))])


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


def wrapped(text: str) -> list[str]:
    """Return ``text`` on at most three indented lines."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        max_lines=3,
        placeholder="...",
        break_on_hyphens=False,
    )
