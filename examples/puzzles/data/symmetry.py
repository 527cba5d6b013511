"""What leaves a Sudoku a Sudoku: other digits, rows of a band, bands, columns of a stack, stacks, and transposition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product

import numpy as np
import torch
from torch import Tensor

from examples.puzzles.data.board import Board

__all__ = ["Form", "canonical", "shuffled"]

Form = tuple[bytes, bytes]
"""A solution and the mask of its clues, as bytes."""


def canonical(board: Board, puzzle: Sequence[int] | np.ndarray, solution: Sequence[int] | np.ndarray) -> Form:
    """Return one name for all puzzles that are equal up to symmetry, and different names for others.

    The first part is the least solution, row by row, that a symmetry makes, and names the class of the solution; the
    second one is the least mask of clues among the symmetries that make it.

    Args:
        board: the shape of both.
        puzzle: a digit or 0 per cell.
        solution: its one solution.
    """
    size = board.size
    grid = np.asarray(solution, dtype=np.uint8).reshape(size, size) - 1
    mask = (np.asarray(puzzle).reshape(size, size) > 0).astype(np.uint8)
    sides = [(grid, mask), (grid.T, mask.T)] if board.square else [(grid, mask)]
    made = [_least(board, *side) for side in sides]
    least = min(form for form, _ in made)
    masks = np.concatenate([found for form, found in made if form == least])
    return least, min(row.tobytes() for row in masks)


def _least(board: Board, grid: np.ndarray, mask: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Return the least grid without transposition, and the masks of all symmetries that make it."""
    columns = _column_orders(board)
    # for every row that may stand first and every order of the columns, its digits are 0, 1, 2 ... from left to right
    names = np.argsort(grid[:, columns], axis=-1)
    rows, orders = (index.flatten() for index in np.indices(names.shape[:2]))
    if board.box_rows > 1:
        keep = _least_rows(_second_rows(board, grid, names, columns))
        rows, orders = rows[keep], orders[keep]
    grids, masks = (values[:, columns[orders]].transpose(1, 0, 2) for values in (grid, mask))
    grids = names[rows[:, None, None], orders[:, None, None], grids]
    grids, masks = _rows_in_order(board, grids, masks)
    flat = grids.reshape(len(grids), -1)
    keep = _least_rows(flat)
    return flat[keep[0]].astype(np.uint8).tobytes(), masks[keep].reshape(len(keep), -1)


def _second_rows(board: Board, grid: np.ndarray, names: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the row that follows each row that stands first, (rows * orders, size): of its band, the least one."""
    size, height = board.size, board.box_rows
    bands = np.arange(size) // height
    mates = np.array(
        [[row for row in range(size) if bands[row] == bands[first] and row != first] for first in range(size)]
    )
    digits = grid[mates][:, :, columns].transpose(0, 2, 1, 3)
    rows, orders = np.arange(size)[:, None, None, None], np.arange(len(columns))[None, :, None, None]
    named = names[rows, orders, digits].reshape(-1, height - 1, size)
    return named[np.arange(len(named)), named[:, :, 0].argmin(axis=1)]


def _least_rows(values: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows that are least, compared from left to right."""
    keep = np.arange(len(values))
    for column in values.T:
        left = column[keep]
        keep = keep[left == left.min()]
    return keep


def _rows_in_order(board: Board, grids: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the rows of every band by their first digit, and the bands by their first row."""
    size, height = board.size, board.box_rows
    first = grids[:, :, 0].reshape(len(grids), size // height, height)
    inside = np.argsort(first, axis=-1)
    bands = np.argsort(first.min(axis=-1), axis=-1)
    order = (np.take_along_axis(inside, bands[..., None], axis=1) + height * bands[..., None]).reshape(len(grids), size)
    return tuple(np.take_along_axis(values, order[..., None], axis=1) for values in (grids, masks))  # type: ignore[return-value]


def _column_orders(board: Board) -> np.ndarray:
    """Return every order of the columns that keeps the stacks together, (orders, size)."""
    width, stacks = board.box_columns, board.size // board.box_columns
    inside = list(permutations(range(width)))
    orders = [
        [width * stack + column for stack, columns in zip(order, within, strict=True) for column in columns]
        for order in permutations(range(stacks))
        for within in product(inside, repeat=stacks)
    ]
    return np.array(orders)


def shuffled(board: Board, *boards: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return each row of the boards under a random symmetry of its own, the same one for all of ``boards``.

    Args:
        board: their shape.
        *boards: (B, cells) each, digits from 0 (a blank, which stays one).
        generator: of the symmetries.
    """
    count, size = boards[0].shape[0], board.size
    rows = _orders(count, size // board.box_rows, board.box_rows, generator)
    columns = _orders(count, size // board.box_columns, board.box_columns, generator)
    places = rows[:, :, None] * size + columns[:, None, :]
    if board.square:
        turned = torch.rand(count, generator=generator) < 0.5
        places = torch.where(turned[:, None, None], places.transpose(1, 2), places)
    digits = 1 + torch.rand(count, size, generator=generator).argsort(dim=1)
    names = torch.cat([torch.zeros(count, 1, dtype=torch.int64), digits], dim=1)
    return tuple(names.gather(1, each.gather(1, places.flatten(1))) for each in boards)


def _orders(count: int, groups: int, members: int, generator: torch.Generator) -> Tensor:
    """Return random orders of lines that keep groups together, (count, groups * members)."""
    group = torch.rand(count, groups, 1, generator=generator).argsort(dim=1)
    member = torch.rand(count, groups, members, generator=generator).argsort(dim=2)
    return (group * members + member).flatten(1)
