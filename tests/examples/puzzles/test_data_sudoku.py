"""Puzzles are minimal, unique and apart up to symmetry; the solver proves what it says."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.puzzles.data import (
    BOARDS,
    Board,
    Sudoku,
    board_named,
    canonical,
    only_solution,
    problem_named,
    rounds_of_singles,
    shuffled,
    solutions,
)
from examples.puzzles.data.generate import all_grids, minimal, minimal_masks, random_grid

KNOWN = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def one_of(name, seed):
    board, order = BOARDS[name], Random(seed)
    grid = random_grid(board, order)
    return board, minimal(board, grid, order), grid


def test_a_published_puzzle_has_its_published_solution():
    board = board_named("9x9")
    assert "".join(map(str, only_solution(board, board.read(KNOWN)))) == ANSWER


def test_every_board_of_4x4_is_found():
    grids = all_grids(BOARDS["4x4"])
    assert len({tuple(grid) for grid in grids.tolist()}) == 288


def test_there_are_36_minimal_puzzles_of_4x4_up_to_symmetry():
    board = BOARDS["4x4"]
    grids = all_grids(board)
    classes = {canonical(board, grid, grid)[0]: i for i, grid in enumerate(grids)}
    assert len(classes) == 2
    forms = {
        canonical(board, grids[i] * clues, grids[i]): int(clues.sum())
        for i in classes.values()
        for clues in minimal_masks(board, grids, i)
    }
    assert sorted(forms.values()) == [4] * 13 + [5] * 22 + [6]


@pytest.mark.parametrize("name", ["4x4", "6x6"])
def test_no_clue_of_a_generated_puzzle_can_go(name):
    board, puzzle, grid = one_of(name, 3)
    assert only_solution(board, puzzle) == grid
    for cell in range(board.cells):
        if puzzle[cell]:
            assert len(solutions(board, [*puzzle[:cell], 0, *puzzle[cell + 1 :]])) == 2


@given(seed=st.integers(0, 10**6), name=st.sampled_from(["4x4", "6x6"]))
@settings(max_examples=15, deadline=None)
def test_the_form_does_not_depend_on_the_symmetry(seed, name):
    board, puzzle, grid = one_of(name, seed % 7)
    both = [torch.tensor([digits]) for digits in (puzzle, grid)]
    moved, solved = shuffled(board, *both, generator=torch.Generator().manual_seed(seed))
    moved, solved = moved[0].tolist(), solved[0].tolist()
    assert only_solution(board, moved) == tuple(solved)
    assert canonical(board, moved, solved) == canonical(board, puzzle, grid)


def test_the_form_of_9x9_does_not_depend_on_the_symmetry():
    board = BOARDS["9x9"]
    puzzle, grid = board.read(KNOWN), board.read(ANSWER)
    both = [torch.tensor([digits]) for digits in (puzzle, grid)]
    moved, solved = shuffled(board, *both, generator=torch.Generator().manual_seed(1))
    assert canonical(board, moved[0].tolist(), solved[0].tolist()) == canonical(board, puzzle, grid)


def test_puzzles_that_differ_in_a_clue_have_different_forms():
    board, puzzle, grid = one_of("6x6", 1)
    cell = next(i for i, digit in enumerate(puzzle) if not digit)
    more = [*puzzle[:cell], grid[cell], *puzzle[cell + 1 :]]
    assert canonical(board, puzzle, grid)[0] == canonical(board, more, grid)[0]
    assert canonical(board, puzzle, grid) != canonical(board, more, grid)


def form(problem, puzzle):
    return canonical(problem.board, puzzle.cells, [digit + 1 for digit in puzzle.answer])


@pytest.mark.parametrize(("name", "part"), [("4x4", slice(None)), ("6x6", slice(1))])
def test_the_splits_share_nothing_up_to_symmetry(name, part):
    problem = Sudoku(BOARDS[name])
    drawn = problem.draw({"train": 30, "valid": 8, "test": 14}, seed=0)
    forms = {split: {form(problem, puzzle)[part] for puzzle in puzzles} for split, puzzles in drawn.items()}
    assert [len(drawn[split]) for split in ("train", "valid", "test")] == [30, 8, 14]
    assert not forms["train"] & forms["test"]
    assert not forms["train"] & forms["valid"]
    assert not forms["valid"] & forms["test"]


def test_the_splits_of_two_seeds_share_nothing_either():
    problem = problem_named("4x4")
    one, other = (problem.draw({"train": 25, "test": 7}, seed=seed) for seed in (0, 5))
    assert not {form(problem, p) for p in one["train"]} & {form(problem, p) for p in other["test"]}


def test_equal_seeds_give_equal_puzzles():
    problem = problem_named("6x6")
    assert problem.draw({"test": 2}, 4) == problem.draw({"test": 2}, 4)
    assert problem.draw({"test": 2}, 4) != problem.draw({"test": 2}, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("." * 16, "a single solution, and it has at least two"),
        ("11" + "." * 14, "solvable, and it has no solution"),
        ("123....4" + "." * 8, "solvable, and it has no solution"),
    ],
)
def test_a_puzzle_with_two_solutions_or_none_is_named(text, message):
    board = BOARDS["4x4"]
    with pytest.raises(ValueError, match=message):
        only_solution(board, board.read(text))


def test_what_is_no_board_is_named():
    with pytest.raises(ValueError, match=r"puzzle must be 16 characters, one per cell of a 4x4 board, got '\.\.\.'"):
        BOARDS["4x4"].read("...")
    with pytest.raises(ValueError, match=r"character 3 of the puzzle must be a digit from 1 to 4, .* got '5'"):
        BOARDS["4x4"].read("..5" + "." * 13)
    with pytest.raises(ValueError, match="box_rows must be a whole number >= 1, got 0"):
        Board(0, 2)
    with pytest.raises(ValueError, match="puzzle must be one of 4x4, 6x6, 9x9, or maze"):
        problem_named("5x5")


def test_rounds_of_singles():
    board = BOARDS["4x4"]
    assert rounds_of_singles(board, board.read("1234341221434321")) == 0
    assert rounds_of_singles(board, board.read(".234341221434321")) == 1
    assert rounds_of_singles(board, [0] * 16) is None
