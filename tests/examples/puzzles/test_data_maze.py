"""The way through a maze is the shortest one and the only one; mazes of train and test are no images of each other."""

from __future__ import annotations

from random import Random

import pytest
import torch

from examples.puzzles.data import Maze, problem_named
from examples.puzzles.data.maze import maze, maze_form, shortest_way, turned

MARKS = {mark: kind for kind, mark in enumerate("#.SG")}


def cells(text):
    return [MARKS[mark] for mark in text]


def test_a_way_is_found():
    assert shortest_way(3, cells("S..##.G..")) == (1, 1, 1, 0, 0, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S.......G", "a single shortest way, and it has 6"),
        ("S#.##..#G", "with a way, and it has none"),
        (".........", "starts must be 1, got 0"),
        ("S..S....G", "starts must be 1, got 2"),
        ("S......", "cells must be 9"),
    ],
)
def test_a_maze_without_one_way_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        shortest_way(3, cells(text))


def test_a_generated_maze_has_a_way_that_is_worth_it():
    for seed in range(5):
        made, way = maze(6, Random(seed))
        assert shortest_way(6, made) == way
        assert sum(way) > 6


def test_images_have_one_form_and_keep_their_way():
    made, way = maze(5, Random(2))
    boards = [torch.tensor([one]).expand(30, -1) for one in (made, way)]
    images, ways = turned(5, *boards, generator=torch.Generator().manual_seed(0))
    assert len({tuple(image) for image in images.tolist()}) == 8
    for image, answer in zip(images.tolist(), ways.tolist(), strict=True):
        assert maze_form(5, image) == maze_form(5, made)
        assert shortest_way(5, image) == tuple(answer)


def test_the_splits_share_no_image():
    problem = problem_named("maze4")
    drawn = problem.draw({"train": 60, "valid": 8, "test": 15}, seed=0)
    forms = [{maze_form(4, puzzle.cells) for puzzle in puzzles} for puzzles in drawn.values()]
    assert not forms[0] & forms[1]
    assert not forms[0] & forms[2]
    assert not forms[1] & forms[2]


@pytest.mark.parametrize("name", ["maze", "maze-7", "maze2"])
def test_mazes_that_do_not_exist_are_named(name):
    with pytest.raises(ValueError, match="must be"):
        problem_named(name)
    with pytest.raises(ValueError, match="side must be"):
        Maze(-1)
