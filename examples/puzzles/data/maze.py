"""Mazes: the one shortest way from a start to a goal."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require

__all__ = ["GOAL", "OPEN", "START", "WALL", "maze", "maze_form", "shortest_way", "turned"]

WALL, OPEN, START, GOAL = range(4)
"""What a cell can be."""
WALLS = 0.35
"""Share of the cells of a random maze that are walls."""

Distances = dict[int, int]


def neighbours(side: int, cell: int) -> list[int]:
    """Return the cells above, below, left and right of a cell."""
    row, column = divmod(cell, side)
    steps = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return [r * side + c for r, c in steps if 0 <= r < side and 0 <= c < side]


def shortest_way(side: int, cells: Sequence[int]) -> tuple[int, ...]:
    """Return 1 for every cell of the shortest way, its ends included, and 0 for the others.

    Args:
        side: cells of a row, and rows.
        cells: what every cell is, row by row.

    Raises:
        ValueError: not one start and one goal, another number of cells, no way, or several that are shortest.
    """
    require(len(cells) == side**2, "cells", len(cells), f"{side**2}, those of a maze with {side} cells a side")
    for name, kind in (("starts", START), ("goals", GOAL)):
        require(sum(cell == kind for cell in cells) == 1, name, sum(cell == kind for cell in cells), "1")
    start, goal = (list(cells).index(kind) for kind in (START, GOAL))
    far, ways = _flood(side, cells, start)
    require(goal in far, "maze", _text(cells), "one with a way, and it has none")
    require(ways[goal] == 1, "maze", _text(cells), f"one with a single shortest way, and it has {ways[goal]}")
    way, here = {goal}, goal
    while here != start:
        here = next(cell for cell in neighbours(side, here) if far.get(cell) == far[here] - 1)
        way.add(here)
    return tuple(int(cell in way) for cell in range(len(cells)))


def _flood(side: int, cells: Sequence[int], start: int) -> tuple[Distances, Distances]:
    """Return distance from the start and number of shortest ways, for every cell in reach."""
    far, ways, edge = {start: 0}, {start: 1}, [start]
    while edge:
        following = []
        for here in edge:
            for cell in neighbours(side, here):
                if cells[cell] == WALL:
                    continue
                if cell not in far:
                    far[cell], ways[cell] = far[here] + 1, 0
                    following.append(cell)
                if far[cell] == far[here] + 1:
                    ways[cell] += ways[here]
        edge = following
    return far, ways


def maze(side: int, order: Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a random maze with a single shortest way of more than ``side`` cells, and that way."""
    while True:
        cells = [WALL if order.random() < WALLS else OPEN for _ in range(side**2)]
        start, goal = order.sample(range(side**2), 2)
        cells[start], cells[goal] = START, GOAL
        far, ways = _flood(side, cells, start)
        if ways.get(goal) == 1 and far[goal] >= side:
            return tuple(cells), shortest_way(side, cells)


def maze_form(side: int, cells: Sequence[int]) -> bytes:
    """Return one name for a maze, its turned and mirrored images, and those with start and goal exchanged."""
    exchanged = [{START: GOAL, GOAL: START}.get(cell, cell) for cell in cells]
    images = []
    for one in (list(cells), exchanged):
        board = torch.tensor(one, dtype=torch.uint8).reshape(side, side)
        for turn in range(4):
            turned_board = board.rot90(turn)
            images += [bytes(image.flatten().tolist()) for image in (turned_board, turned_board.T)]
    return min(images)


def turned(side: int, *boards: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return each row of the boards turned and mirrored at random, in the same way for all of ``boards``.

    Args:
        side: cells of a row, and rows.
        *boards: (B, side * side) each.
        generator: of the turns.
    """
    places = torch.arange(side**2).reshape(side, side)
    images = [image.flatten() for turn in range(4) for image in (places.rot90(turn), places.rot90(turn).T)]
    which = torch.randint(len(images), (len(boards[0]),), generator=generator)
    order = torch.stack(images)[which]
    return tuple(each.gather(1, order) for each in boards)


def _text(cells: Sequence[int]) -> str:
    return "".join("#.SG"[cell] for cell in cells)
