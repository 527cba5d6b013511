"""Puzzles with one answer each: generated, minimal, proved unique, and apart up to symmetry between train and test."""

from examples.puzzles.data.board import BOARDS, Board, board_named
from examples.puzzles.data.files import read_csv, write_csv
from examples.puzzles.data.problem import SPLITS, Maze, Problem, Puzzle, Split, Sudoku, problem_named
from examples.puzzles.data.solver import only_solution, rounds_of_singles, solutions
from examples.puzzles.data.split import Draw, Puzzles, as_tensors, load
from examples.puzzles.data.symmetry import canonical, shuffled

__all__ = [
    "BOARDS",
    "SPLITS",
    "Board",
    "Draw",
    "Maze",
    "Problem",
    "Puzzle",
    "Puzzles",
    "Split",
    "Sudoku",
    "as_tensors",
    "board_named",
    "canonical",
    "load",
    "only_solution",
    "problem_named",
    "read_csv",
    "rounds_of_singles",
    "shuffled",
    "solutions",
    "write_csv",
]
