"""Minimal puzzles: none of their clues can be taken away without a second solution."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np

from examples.puzzles.data.board import Board
from examples.puzzles.data.solver import has_other, solutions

__all__ = ["all_grids", "minimal", "minimal_masks", "random_grid"]


def random_grid(board: Board, order: Random) -> tuple[int, ...]:
    """Return a random filled board."""
    return solutions(board, [0] * board.cells, limit=1, order=order)[0]


def minimal(board: Board, grid: tuple[int, ...], order: Random) -> tuple[int, ...]:
    """Return a minimal puzzle with the solution ``grid``: clues are taken away in a random order while it stays unique.

    A clue that cannot go beside many others cannot go beside fewer, so one look at each is enough.
    """
    digits = list(grid)
    for cell in order.sample(range(board.cells), board.cells):
        digits[cell] = 0
        if has_other(board, digits, cell, grid[cell]):
            digits[cell] = grid[cell]
    return tuple(digits)


def all_grids(board: Board) -> np.ndarray:
    """Return every filled board, (grids, cells); for 4x4, where there are 288."""
    found = solutions(board, [0] * board.cells, limit=10**6)
    return np.array(found, dtype=np.uint8)


def minimal_masks(board: Board, grids: np.ndarray, which: int) -> Iterator[np.ndarray]:
    """Yield the clues of every minimal puzzle that ``grids[which]`` solves, (cells,) bool each.

    Clues are unique if every other grid differs on one of them, and minimal if no clue can be left away.
    """
    places = 1 << np.arange(board.cells)
    differ = (grids != grids[which]) @ places
    differ = differ[differ > 0]
    subsets = np.arange(1 << board.cells)
    unique = np.ones(len(subsets), dtype=bool)
    for one in differ:
        unique &= (subsets & one) > 0
    less = np.zeros(len(subsets), dtype=bool)
    for place in places:
        less |= (subsets & place > 0) & unique[subsets & ~place]
    for subset in subsets[unique & ~less]:
        yield (subset & places) > 0
