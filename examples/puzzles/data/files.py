"""Puzzles in files of the format in which Sudoku-Extreme is published, a CSV file per split."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from deqlm.training import write_atomically
from deqlm_solvers.core.checks import require
from examples.puzzles.data.board import Board
from examples.puzzles.data.problem import Puzzle
from examples.puzzles.data.solver import only_solution

__all__ = ["COLUMNS", "read_csv", "write_csv"]

COLUMNS = ("source", "question", "answer", "rating")
"""Where a puzzle is from, its cells row by row with a dot per blank, its solution, and how hard it is."""


def read_csv(path: Path, board: Board, *, most: int | None = None, prove: bool = True) -> list[Puzzle]:
    """Return the puzzles of a file.

    Args:
        path: of the file; its first line names the columns.
        board: of every puzzle.
        most: lines to read; None reads all.
        prove: solve every puzzle, to see that it has one solution, and that ``answer`` is it. Some milliseconds each;
            without it ``answer`` is only held against the rules and the clues.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is no puzzle of this board, named by its number.
    """
    found = []
    with path.open(newline="") as file:
        reader = csv.reader(file)
        head = tuple(next(reader, ()))
        require(head == COLUMNS, f"columns of {path}", ",".join(head), ",".join(COLUMNS))
        for line in islice(reader, most):
            try:
                found.append(_puzzle(board, line, prove))
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    require(len(found) > 0, f"puzzles in {path}", 0, ">= 1")
    return found


def _puzzle(board: Board, line: list[str], prove: bool) -> Puzzle:
    require(len(line) == len(COLUMNS), "columns", len(line), f"{len(COLUMNS)}: {', '.join(COLUMNS)}")
    _, question, answer, rating = line
    cells, grid = board.read(question), board.read(answer)
    require(rating.isdecimal(), "rating", rating, "a whole number >= 0")
    whole = set(range(1, board.size + 1))
    filled = all({grid[cell] for cell in unit} == whole for unit in board.units)
    require(filled, "answer", answer, "one that has every digit once per row, column and box")
    require(all(c in (0, d) for c, d in zip(cells, grid, strict=True)), "answer", answer, "one that keeps the clues")
    if prove:
        only_solution(board, cells)
    return Puzzle(cells, tuple(digit - 1 for digit in grid), int(rating))


def write_csv(path: Path, puzzles: Iterable[Puzzle], source: str) -> None:
    """Write puzzles of Sudoku to a file that `read_csv` reads, all of it or none."""
    lines = [",".join(COLUMNS)]
    for puzzle in puzzles:
        question = "".join(str(cell) if cell else "." for cell in puzzle.cells)
        lines.append(f"{source},{question},{''.join(str(digit + 1) for digit in puzzle.answer)},{puzzle.rating}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, ("\n".join(lines) + "\n").encode())
