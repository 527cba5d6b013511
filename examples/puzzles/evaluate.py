"""What a trained model does with puzzles that it has not seen: accuracy, residuals, difficulty, breadth, boards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deqlm import Stop
from examples.puzzles.data import Puzzles
from examples.puzzles.model import PuzzleModel

__all__ = ["BUDGETS", "Look", "boards", "breadth", "by_budget", "by_difficulty", "calibration", "walk"]

BUDGETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RTOL = 1e-2
"""Relative residual below which an answer counts as converged."""

Data = dict[str, Any]


class Look(NamedTuple):
    """Where the iteration stands behind some evaluations.

    Attributes:
        evaluations: so many.
        answers: (B, cells) classes.
        residual: (B,) relative, of the last evaluation.
    """

    evaluations: int
    answers: Tensor
    residual: Tensor


@torch.no_grad()
def walk(model: PuzzleModel, cells: Tensor, budgets: Sequence[int] = BUDGETS, *, seed: int = 0) -> Iterator[Look]:
    """Yield what the model answers behind so many evaluations, each going on where the one before ended.

    Args:
        model: in eval mode.
        cells: (B, cells).
        budgets: rising numbers of evaluations.
        seed: of the starts.
    """
    z = model.start(model.inject(cells), torch.Generator().manual_seed(seed))
    done = 0
    for budget in budgets:
        output = model(cells, stop=Stop(max_iter=budget - done, rtol=0), start=z)
        assert output.solution is not None
        z, done = output.state, budget
        yield Look(budget, output.logits.argmax(-1), output.solution.relative)


def by_budget(model: PuzzleModel, puzzles: Puzzles, budgets: Sequence[int] = BUDGETS, *, seed: int = 0) -> list[Data]:
    """Return accuracy and residuals behind every number of evaluations.

    A row counts as converged where its relative residual is at most 0.01.
    """
    found = []
    for look in walk(model, puzzles.cells, budgets, seed=seed):
        right = (look.answers == puzzles.answers).all(dim=1)
        done = look.residual <= RTOL
        found.append(
            {
                "evaluations": look.evaluations,
                "exact": _share(right),
                "cells": _share(look.answers == puzzles.answers),
                "residual": float(look.residual.median()),
                "converged": _share(done),
                "exact_converged": _share(right[done]),
                "exact_others": _share(right[~done]),
            }
        )
    return found


def calibration(model: PuzzleModel, puzzles: Puzzles, evaluations: int, *, seed: int = 0) -> Data:
    """Return the share of right answers by residual: the puzzles in ten groups, from the least residual to the largest.

    ``order`` is the chance that a right answer has a smaller residual than a wrong one, None without one of them.
    """
    (look,) = walk(model, puzzles.cells, (evaluations,), seed=seed)
    right = (look.answers == puzzles.answers).all(dim=1)
    order = look.residual.argsort()
    groups = [
        {"residual": float(look.residual[part].median()), "exact": _share(right[part]), "puzzles": len(part)}
        for part in order.tensor_split(10)
        if len(part)
    ]
    good, bad = look.residual[right], look.residual[~right]
    apart = None
    if len(good) and len(bad):
        smaller = good[:, None] < bad[None, :]
        equal = good[:, None] == bad[None, :]
        apart = round(float((smaller + 0.5 * equal).double().mean()), 4)
    return {"evaluations": evaluations, "groups": groups, "order": apart}


@torch.no_grad()
def by_difficulty(model: PuzzleModel, puzzles: Puzzles, most: int = 256, *, seed: int = 0) -> list[Data]:
    """Return by rating how many evaluations a puzzle takes until its residual is small, and how often it is right.

    ``settled`` is the first number of evaluations from which the answer is right and stays so, over the puzzles that
    are right in the end.
    """
    looks = list(walk(model, puzzles.cells, range(1, most + 1), seed=seed))
    right = torch.stack([(look.answers == puzzles.answers).all(dim=1) for look in looks])
    small = torch.stack([look.residual <= RTOL for look in looks])
    settled = 1 + (~right).long().mul(torch.arange(1, most + 1)[:, None]).amax(dim=0)
    first = torch.where(small.any(dim=0), 1 + small.long().argmax(dim=0), most)
    found = []
    for rating in puzzles.ratings.unique().tolist():
        here = puzzles.ratings == rating
        solved = here & right[-1]
        found.append(
            {
                "rating": rating,
                "puzzles": int(here.sum()),
                "exact": _share(right[-1, here]),
                "evaluations": round(float(first[here].double().mean()), 2),
                "converged": _share(small[:, here].any(dim=0)),
                "settled": round(float(settled[solved].double().mean()), 2) if solved.any() else None,
            }
        )
    return found


def breadth(
    model: PuzzleModel, puzzles: Puzzles, evaluations: Sequence[int], starts: Sequence[int], *, seed: int = 0
) -> list[Data]:
    """Return what several random starts bring: one answer of so many, by residual or vote, and whether any is right.

    Args:
        model: in eval mode.
        puzzles: to solve.
        evaluations: of each start.
        starts: how many of them.
        seed: of the first start.
    """
    runs = [list(walk(model, puzzles.cells, evaluations, seed=seed + 1000 * k)) for k in range(max(starts))]
    found = []
    for i, depth in enumerate(evaluations):
        answers = torch.stack([run[i].answers for run in runs])
        residuals = torch.stack([run[i].residual for run in runs])
        right = (answers == puzzles.answers).all(dim=2)
        for count in starts:
            least = residuals[:count].argmin(dim=0)
            voted = _voted(answers[:count])
            found.append(
                {
                    "evaluations": depth,
                    "starts": count,
                    "mean": _share(right[:count]),
                    "least residual": _share(right[:count].gather(0, least[None])),
                    "vote": _share(right[:count].gather(0, voted[None])),
                    "any": _share(right[:count].any(dim=0)),
                }
            )
    return found


def _voted(answers: Tensor) -> Tensor:
    """Return per row the first start whose board most starts agree with, (B,)."""
    agree = (answers[:, None] == answers[None, :]).all(dim=3).sum(dim=1)
    return agree.argmax(dim=0)


def boards(model: PuzzleModel, cells: Tensor, budgets: Sequence[int] = BUDGETS, *, seed: int = 0) -> list[Data]:
    """Return the answer to one puzzle, (1, cells), behind every number of evaluations."""
    return [
        {"evaluations": look.evaluations, "answer": look.answers[0].tolist(), "residual": float(look.residual[0])}
        for look in walk(model, cells, budgets, seed=seed)
    ]


def _share(values: Tensor) -> float | None:
    return round(float(values.double().mean()), 4) if values.numel() else None
