"""The puzzles of an experiment as tensors: drawn once, kept in a file, read by every run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deqlm.training import write_atomically
from deqlm_solvers import Options, options
from deqlm_solvers.core.checks import require, whole
from examples.puzzles.data.board import Board
from examples.puzzles.data.files import read_csv
from examples.puzzles.data.problem import SPLITS, Problem, Puzzle, Split, Sudoku, problem_named

__all__ = ["Draw", "Puzzles", "as_tensors", "load"]


class Puzzles(NamedTuple):
    """Puzzles of one split.

    Attributes:
        cells: (N, cells) int64, tokens.
        answers: (N, cells) int64, classes.
        ratings: (N,) int64.
    """

    cells: Tensor
    answers: Tensor
    ratings: Tensor


@options
class Draw(Options):
    """Which puzzles an experiment uses.

    Args:
        problem: as `examples.puzzles.data.problem.problem_named` reads it.
        train: puzzles to train on, under random symmetries.
        valid: puzzles by which choices are made.
        test: puzzles of the reported figures.
        seed: of the generator.
        folder: with "train.csv" and "test.csv" in the format of Sudoku-Extreme; None generates.

    Raises:
        ValueError: a number below 1, or a problem that is not known.
    """

    problem: str
    train: int
    valid: int = 300
    test: int = 500
    seed: int = 0
    folder: str | None = None

    def __post_init__(self) -> None:
        problem_named(self.problem)
        for name in SPLITS:
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed, 0)

    @property
    def counts(self) -> dict[Split, int]:
        """Puzzles of every split."""
        return {split: getattr(self, split) for split in SPLITS}


def load(draw: Draw, cache: Path | None) -> dict[Split, Puzzles]:
    """Return the puzzles of every split, as a file in the folder ``cache`` has them, or drawn and written there.

    Args:
        draw: which.
        cache: the folder; None draws them and keeps nothing.

    Raises:
        ValueError: files of the draw's folder that hold something else, or a damaged cache.
        FileNotFoundError: the draw's folder lacks a file.
    """
    name = f"{draw.problem}-{draw.seed}-{'-'.join(map(str, draw.counts.values()))}.json"
    path = None if cache is None else cache / (name if draw.folder is None else f"read-{name}")
    wanted = draw.to_dict()
    if path is not None and path.exists():
        stored = _stored(path)
        if stored["draw"] == wanted:
            return {split: as_tensors([Puzzle(*p) for p in stored[split]]) for split in SPLITS}
    problem = problem_named(draw.problem)
    drawn = problem.draw(draw.counts, draw.seed) if draw.folder is None else _read(draw, problem)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"draw": wanted, **drawn}).encode())
    return {split: as_tensors(puzzles) for split, puzzles in drawn.items()}


def _stored(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: remove it ({error})") from error


def _read(draw: Draw, problem: Problem) -> dict[Split, list[Puzzle]]:
    """Read both files; the puzzles of validation are the last ones read of the training file."""
    require(isinstance(problem, Sudoku), "folder", draw.folder, "None for mazes, which are generated")
    assert isinstance(problem, Sudoku)
    assert draw.folder is not None
    board: Board = problem.board
    here = Path(draw.folder)
    learnt = read_csv(here / "train.csv", board, most=draw.train + draw.valid)
    need = draw.train + draw.valid
    require(len(learnt) == need, f"puzzles in {here / 'train.csv'}", len(learnt), f">= {need} for train and valid")
    tested = read_csv(here / "test.csv", board, most=draw.test)
    return {"train": learnt[: draw.train], "valid": learnt[draw.train :], "test": tested}


def as_tensors(puzzles: list[Puzzle]) -> Puzzles:
    """Return puzzles of one kind as tensors."""
    cells, answers, ratings = zip(*puzzles, strict=True)
    return Puzzles(*(torch.tensor(values, dtype=torch.int64) for values in (cells, answers, ratings)))
