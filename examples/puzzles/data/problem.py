"""What a puzzle is to a model: tokens in, a class per cell out; and how train and test are kept apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from deqlm_solvers.core.checks import require, whole
from examples.puzzles.data.board import BOARDS, Board
from examples.puzzles.data.generate import all_grids, minimal, minimal_masks, random_grid
from examples.puzzles.data.maze import maze, maze_form, shortest_way, turned
from examples.puzzles.data.solver import only_solution, rounds_of_singles
from examples.puzzles.data.symmetry import canonical, shuffled

__all__ = ["SPLITS", "Maze", "Problem", "Puzzle", "Split", "Sudoku", "problem_named"]

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
SHARES = {"test": 0.2, "valid": 0.1}
"""Of the classes of solutions, or of puzzles, that no training sees."""


class Puzzle(NamedTuple):
    """A puzzle with its answer.

    Attributes:
        cells: a token per cell.
        answer: a class per cell, or IGNORED.
        rating: how hard it is.
    """

    cells: tuple[int, ...]
    answer: tuple[int, ...]
    rating: int


class Problem(Protocol):
    """A kind of puzzles.

    Attributes:
        name: by which `problem_named` finds it.
        tokens: that a cell may be.
        classes: that the answer of a cell may be.
        places: features of where a cell is, as numbers below ``kinds``.
        kinds: how many values each feature has.
        rated: what the rating counts.
    """

    name: str
    tokens: int
    classes: int
    places: tuple[tuple[int, ...], ...]
    kinds: tuple[int, ...]
    rated: str

    def draw(self, counts: dict[Split, int], seed: int) -> dict[Split, list[Puzzle]]:
        """Return puzzles of every split; no two of different splits are equal up to symmetry."""
        ...

    def shuffled(self, cells: Tensor, answers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return every row under a random symmetry of its own."""
        ...

    def solve(self, cells: Sequence[int]) -> tuple[int, ...]:
        """Return the one answer of a puzzle.

        Raises:
            ValueError: it has none, or more than one.
        """
        ...


def split_of(form: bytes) -> Split:
    """Return the split of a canonical form; it depends on nothing else, so equal forms never part."""
    at = int.from_bytes(hashlib.sha256(form).digest()[:4]) / 2**32
    return "test" if at < SHARES["test"] else "valid" if at < SHARES["test"] + SHARES["valid"] else "train"


class Sudoku:
    """Minimal puzzles on one board.

    Split by the canonical form of the solution: no solution of a test puzzle is, up to symmetry, one that training
    sees. The 4x4 board has two such forms only, and is split by the form of the puzzle, of which there are 36.

    Args:
        board: 4x4, 6x6 or 9x9.
    """

    rated = "rounds of singles, one more than any where singles do not suffice"

    def __init__(self, board: Board) -> None:
        self.board, self.name = board, board.name
        self.tokens, self.classes = board.size + 1, board.size
        self.places, self.kinds = board.places, (board.size,) * 3

    def draw(self, counts: dict[Split, int], seed: int) -> dict[Split, list[Puzzle]]:
        return self._draw_from_all(counts, seed) if self.board.size == 4 else _fill(self._stream(Random(seed)), counts)

    def _stream(self, order: Random) -> Iterator[tuple[Split, Callable[[], Puzzle]]]:
        while True:
            grid = random_grid(self.board, order)
            split = split_of(canonical(self.board, grid, grid)[0])
            yield split, lambda grid=grid: self._puzzle(minimal(self.board, grid, order), grid)

    def _draw_from_all(self, counts: dict[Split, int], seed: int) -> dict[Split, list[Puzzle]]:
        """Take the 36 puzzles of 4x4, deal them out, and go round while more are asked for, under random symmetries."""
        grids = all_grids(self.board)
        first = {canonical(self.board, grid, grid)[0]: i for i, grid in reversed(list(enumerate(grids)))}
        forms: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
        for i in first.values():
            for clues in minimal_masks(self.board, grids, i):
                puzzle = np.where(clues, grids[i], 0)
                forms.setdefault(canonical(self.board, puzzle, grids[i]), (puzzle, grids[i]))
        ordered = [forms[form] for form in sorted(forms)]
        Random(0).shuffle(ordered)
        test, valid = (round(len(ordered) * SHARES[split]) for split in ("test", "valid"))
        dealt = {"test": ordered[:test], "valid": ordered[test : test + valid], "train": ordered[test + valid :]}
        return {split: self._members(dealt[split], count, seed + i) for i, (split, count) in enumerate(counts.items())}

    def _members(self, classes: Sequence[tuple[np.ndarray, np.ndarray]], count: int, seed: int) -> list[Puzzle]:
        which = torch.arange(count) % len(classes)
        both = [torch.tensor(np.array(part), dtype=torch.int64)[which] for part in zip(*classes, strict=True)]
        puzzles, grids = shuffled(self.board, *both, generator=torch.Generator().manual_seed(seed))
        return [self._puzzle(p, g) for p, g in zip(puzzles.tolist(), grids.tolist(), strict=True)]

    def _puzzle(self, cells: Sequence[int], grid: Sequence[int]) -> Puzzle:
        rounds = rounds_of_singles(self.board, cells)
        hardest = self.board.cells + 1
        return Puzzle(tuple(cells), tuple(int(d) - 1 for d in grid), hardest if rounds is None else rounds)

    def shuffled(self, cells: Tensor, answers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        cells, grids = shuffled(self.board, cells, answers + 1, generator=generator)
        return cells, grids - 1

    def solve(self, cells: Sequence[int]) -> tuple[int, ...]:
        return tuple(digit - 1 for digit in only_solution(self.board, cells))


class Maze:
    """The shortest way through random walls, where it is the only one.

    Split by the least of the images that turning, mirroring and exchanging start and goal make.

    Args:
        side: cells of a row, and rows; >= 3.

    Raises:
        ValueError: fewer.
    """

    rated = "cells of the way"

    def __init__(self, side: int) -> None:
        whole("side", side, 3)
        self.side, self.name = side, f"maze{side}"
        self.tokens, self.classes, self.kinds = 4, 2, (side, side)
        self.places = tuple(divmod(cell, side) for cell in range(side**2))

    def draw(self, counts: dict[Split, int], seed: int) -> dict[Split, list[Puzzle]]:
        return _fill(self._stream(Random(seed)), counts)

    def _stream(self, order: Random) -> Iterator[tuple[Split, Callable[[], Puzzle]]]:
        while True:
            cells, way = maze(self.side, order)
            yield split_of(maze_form(self.side, cells)), lambda cells=cells, way=way: Puzzle(cells, way, sum(way))

    def shuffled(self, cells: Tensor, answers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        cells, answers = turned(self.side, cells, answers, generator=generator)
        return cells, answers

    def solve(self, cells: Sequence[int]) -> tuple[int, ...]:
        return shortest_way(self.side, cells)


def _fill(stream: Iterator[tuple[Split, Callable[[], Puzzle]]], counts: dict[Split, int]) -> dict[Split, list[Puzzle]]:
    """Take from the stream what every split still lacks."""
    found: dict[Split, list[Puzzle]] = {split: [] for split in counts}
    while any(len(found[split]) < count for split, count in counts.items()):
        split, make = next(stream)
        if split in counts and len(found[split]) < counts[split]:
            found[split].append(make())
    return found


def problem_named(name: str) -> Problem:
    """Return the problem of a name: "4x4", "6x6", "9x9", or "maze7" for mazes with 7 cells a side.

    Raises:
        ValueError: there is none of that name.
    """
    side = name.removeprefix("maze")
    if name.startswith("maze") and side.isdecimal():
        return Maze(int(side))
    require(name in BOARDS, "puzzle", name, f"one of {', '.join(BOARDS)}, or maze with its cells a side, as maze7")
    return Sudoku(BOARDS[name])
