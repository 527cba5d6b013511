"""Boards of Sudoku: an n x n board in boxes of so many rows and columns, every digit once per row, column and box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from deqlm_solvers.core.checks import require, whole

__all__ = ["BOARDS", "Board", "board_named"]


@dataclass(frozen=True)
class Board:
    """The shape of a puzzle; cells are numbered row by row, digits are 1 to ``size``, 0 is a blank.

    Args:
        box_rows: rows of a box, >= 1.
        box_columns: columns of a box, >= 1.

    Raises:
        ValueError: a number below 1.
    """

    box_rows: int
    box_columns: int

    def __post_init__(self) -> None:
        whole("box_rows", self.box_rows, 1)
        whole("box_columns", self.box_columns, 1)

    @property
    def size(self) -> int:
        """Rows, columns and digits."""
        return self.box_rows * self.box_columns

    @property
    def cells(self) -> int:
        """Cells of the board."""
        return self.size**2

    @property
    def square(self) -> bool:
        """Whether its boxes are square, so that a board may be transposed."""
        return self.box_rows == self.box_columns

    @property
    def name(self) -> str:
        """Its size in words, such as "6x6"."""
        return f"{self.size}x{self.size}"

    @cached_property
    def places(self) -> tuple[tuple[int, int, int], ...]:
        """Row, column and box of every cell."""
        rows, columns = self.box_rows, self.box_columns
        pairs = [divmod(cell, self.size) for cell in range(self.cells)]
        return tuple((r, c, (r // rows) * rows + c // columns) for r, c in pairs)

    @cached_property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """The cells of every row, column and box."""
        kinds = [[cell for cell, at in enumerate(self.places) if at[kind] == i] for kind in range(3)
                 for i in range(self.size)]  # fmt: skip
        return tuple(map(tuple, kinds))

    def read(self, text: str) -> tuple[int, ...]:
        """Return the digits of a text that has a character per cell, row by row; "." and "0" are blanks.

        Raises:
            ValueError: another number of cells, or a character that is no digit of the board.
        """
        require(
            len(text) == self.cells, "puzzle", text, f"{self.cells} characters, one per cell of a {self.name} board"
        )
        digits = {".": 0, **{str(digit): digit for digit in range(self.size + 1)}}
        for cell, character in enumerate(text):
            rule = f"a digit from 1 to {self.size}, or a dot or 0 for a blank"
            require(character in digits, f"character {cell + 1} of the puzzle", character, rule)
        return tuple(digits[character] for character in text)

    def check(self, digits: Sequence[int]) -> tuple[int, ...]:
        """Return the digits of a board, as they are.

        Raises:
            ValueError: another number of cells, or a number that is no digit of the board.
        """
        require(len(digits) == self.cells, "cells", len(digits), f"{self.cells}, those of a {self.name} board")
        for cell, digit in enumerate(digits):
            require(0 <= digit <= self.size, f"cell {cell}", digit, f"a digit from 1 to {self.size}, or 0 for a blank")
        return tuple(map(int, digits))

    def write(self, digits: Sequence[int]) -> str:
        """Return a board as text, a line per row and a dot per blank."""
        rows = [digits[start : start + self.size] for start in range(0, self.cells, self.size)]
        return "\n".join(" ".join(str(d) if d else "." for d in row) for row in rows)


BOARDS = {board.name: board for board in (Board(2, 2), Board(2, 3), Board(3, 3))}
"""The boards that the commands know, by name."""


def board_named(name: str) -> Board:
    """Return a board of `BOARDS`.

    Raises:
        ValueError: there is none of that name.
    """
    require(name in BOARDS, "board", name, f"one of {', '.join(BOARDS)}")
    return BOARDS[name]
