"""Sessions of a read-eval-print loop: five variables are swapped in pairs, and one of them is printed now and then.

A session is what a language model would see: ``swap a d``, ``print a 3``. What is printed is
a part of the state, so a reader that has lost track of it can find some of it again.
"""

from __future__ import annotations

import numpy as np

from examples.loop import IGNORED

__all__ = ["NAMES", "traces"]

VARIABLES = "abcde"
NAMES = (*map(str, range(len(VARIABLES))), *VARIABLES, "swap", "print")
"""Names of the tokens: values, variables, statements."""

FIRST, SWAP, PRINT = len(VARIABLES), 2 * len(VARIABLES), 2 * len(VARIABLES) + 1
PRINTED = 0.3
"""Share of the statements that print."""


def traces(random: np.random.Generator, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sessions of ``length`` tokens, three a statement, and the next token at every variable that is printed.

    The variables a to e begin with the values 0 to 4. The last statement always prints.

    Args:
        random: generator.
        rows: sessions.
        length: tokens, a multiple of three.

    Returns:
        Tokens and targets, (B, L) int64; a target that does not count is -100.
    """
    count, row = len(VARIABLES), np.arange(rows)
    values = np.tile(np.arange(count), (rows, 1))
    ids, targets = np.empty((rows, length), dtype=np.int64), np.full((rows, length), IGNORED)
    for start in range(0, length, 3):
        prints = random.random(rows) < (1.0 if start + 3 == length else PRINTED)
        one = random.integers(count, size=rows)
        other = (one + random.integers(1, count, size=rows)) % count
        shown = values[row, one]
        ids[:, start], ids[:, start + 1] = np.where(prints, PRINT, SWAP), FIRST + one
        ids[:, start + 2] = np.where(prints, shown, FIRST + other)
        targets[:, start + 1] = np.where(prints, shown, IGNORED)
        swapped = values.copy()
        swapped[row, one], swapped[row, other] = values[row, other], shown
        values = np.where(prints[:, None], values, swapped)
    return ids, targets
