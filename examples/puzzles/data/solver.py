"""An exact solver: how many solutions a puzzle has, and how hard it is to find them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from deqlm_solvers.core.checks import require
from examples.puzzles.data.board import Board

__all__ = ["has_other", "only_solution", "rounds_of_singles", "solutions"]


class _Search:
    """Depth first, the cell with the fewest digits next; stops behind ``limit`` solutions."""

    def __init__(self, board: Board, digits: Sequence[int], limit: int, order: Random | None) -> None:
        self.board, self.limit, self.order = board, limit, order
        self.digits = list(digits)
        self.used = [[0] * board.size for _ in range(3)]
        self.whole = (1 << board.size) - 1
        self.found: list[tuple[int, ...]] = []
        self.blank = [cell for cell, digit in enumerate(digits) if not digit]
        self.possible = all(self._put(cell, digit) for cell, digit in enumerate(digits) if digit)

    def run(self) -> list[tuple[int, ...]]:
        if self.possible:
            self._go(self.blank)
        return self.found

    def _put(self, cell: int, digit: int) -> bool:
        row, column, box = self.board.places[cell]
        rows, columns, boxes = self.used
        bit = 1 << (digit - 1)
        if (rows[row] | columns[column] | boxes[box]) & bit:
            return False
        rows[row] |= bit
        columns[column] |= bit
        boxes[box] |= bit
        self.digits[cell] = digit
        return True

    def _take(self, cell: int) -> None:
        row, column, box = self.board.places[cell]
        bit = 1 << (self.digits[cell] - 1)
        self.used[0][row] ^= bit
        self.used[1][column] ^= bit
        self.used[2][box] ^= bit
        self.digits[cell] = 0

    def _go(self, blank: list[int]) -> None:
        if not blank:
            self.found.append(tuple(self.digits))
            return
        best, choice, fewest = -1, 0, self.board.size + 1
        rows, columns, boxes = self.used
        places = self.board.places
        for cell in blank:
            row, column, box = places[cell]
            free = self.whole & ~(rows[row] | columns[column] | boxes[box])
            count = free.bit_count()
            if count < fewest:
                best, choice, fewest = cell, free, count
                if count <= 1:
                    break
        if not fewest:
            return
        rest = [cell for cell in blank if cell != best]
        digits = [d for d in range(1, self.board.size + 1) if choice >> (d - 1) & 1]
        if self.order is not None:
            self.order.shuffle(digits)
        for digit in digits:
            self._put(best, digit)
            self._go(rest)
            self._take(best)
            if len(self.found) >= self.limit:
                return


def solutions(
    board: Board, digits: Sequence[int], limit: int = 2, order: Random | None = None
) -> list[tuple[int, ...]]:
    """Return the solutions of a puzzle, at most ``limit``; two of them prove that it is not unique.

    Args:
        board: its shape.
        digits: a digit or 0 per cell.
        limit: solutions to look for.
        order: tries digits in a random order, so that the solution of an empty board is a random one.
    """
    return _Search(board, board.check(digits), limit, order).run()


def only_solution(board: Board, digits: Sequence[int]) -> tuple[int, ...]:
    """Return the one solution of a puzzle.

    Raises:
        ValueError: it has none, or more than one.
    """
    found = solutions(board, digits)
    text = "".join(map(str, digits))
    require(len(found) > 0, "puzzle", text, "solvable, and it has no solution")
    require(len(found) < 2, "puzzle", text, "one with a single solution, and it has at least two")
    return found[0]


def has_other(board: Board, digits: Sequence[int], cell: int, digit: int) -> bool:
    """Say whether a puzzle with a blank ``cell`` has a solution that puts another digit than ``digit`` there."""
    for other in range(1, board.size + 1):
        if other != digit:
            tried = [*digits[:cell], other, *digits[cell + 1 :]]
            if solutions(board, tried, limit=1):
                return True
    return False


def rounds_of_singles(board: Board, digits: Sequence[int]) -> int | None:
    """Return in how many rounds a puzzle is filled by singles alone, None where that does not fill it.

    In a round every cell that has one possible digit gets it, and every digit that has one possible cell in a row,
    column or box; all at once, as a layer that looks at all cells could.
    """
    digits, rounds = list(digits), 0
    while not all(digits):
        free = [_possible(board, digits, cell) if not digits[cell] else set() for cell in range(board.cells)]
        sure = {cell: next(iter(left)) for cell, left in enumerate(free) if len(left) == 1}
        for unit in board.units:
            for digit in range(1, board.size + 1):
                places = [cell for cell in unit if digit in free[cell]]
                if len(places) == 1:
                    sure[places[0]] = digit
        if not sure:
            return None
        for cell, digit in sure.items():
            digits[cell] = digit
        rounds += 1
    return rounds


def _possible(board: Board, digits: Sequence[int], cell: int) -> set[int]:
    seen = {digits[other] for unit in board.units if cell in unit for other in unit}
    return set(range(1, board.size + 1)) - seen
