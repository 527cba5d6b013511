"""Options as users of torchdeq give them, run by both libraries on one cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compat.maps import Cell, flat, start

__all__ = ["EXACT", "SOLVED", "crashes", "run"]

EXACT: list[dict[str, Any]] = [
    {"f_solver": "simple_fixed_point_iter", "f_max_iter": 12},
    {"f_solver": "simple_fixed_point_iter", "f_max_iter": 12, "n_states": 6},
    {"f_solver": "simple_fixed_point_iter", "f_max_iter": 12, "n_states": 3, "core": "indexing", "grad": [1, 2, 3]},
    {"f_solver": "simple_fixed_point_iter", "f_max_iter": 9, "indexing": [2, 5], "grad": 4, "sup_loc": [1, 3]},
    {"f_solver": "simple_fixed_point_iter", "f_max_iter": 9, "indexing": [2, 5], "grad": 4, "sup_gap": 2},
    {"f_max_iter": 12, "f_tol": 1e-12, "grad": 5, "tau": 0.5},
    {"f_max_iter": 9, "f_tol": 1e-12, "indexing": [2, 5], "core": "indexing", "grad": 4, "sup_gap": 2},
    {"f_max_iter": 8, "f_tol": 1e-12, "f_stop_mode": "rel", "n_states": 2, "core": "indexing"},
    {"f_max_iter": 0, "grad": 12},
]
SOLVED: list[dict[str, Any]] = [
    {"f_max_iter": 200, "f_tol": 1e-13, "ift": True, "b_tol": 1e-13, "b_max_iter": 300},
    {"f_max_iter": 200, "f_tol": 1e-12, "hook_ift": True, "b_tol": 1e-12, "b_max_iter": 300, "f_stop_mode": "rel"},
    {"f_solver": "broyden", "f_max_iter": 40, "f_tol": 1e-12, "f_stop_mode": "rel", "grad": 5, "tau": 0.5},
    {"f_solver": "anderson", "f_max_iter": 80, "f_tol": 1e-10, "ift": True, "b_solver": "broyden", "b_tol": 1e-12},
]


def run(
    get_deq: Callable[..., Any], recipe: dict[str, Any], several: bool, train: bool = True
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Return states, gradients of the parameters and numbers of one call."""
    torch.manual_seed(1)
    cell = Cell()
    deq = get_deq(**recipe).train(train)
    states, info = deq(cell.two if several else cell, [start(), start()] if several else start())
    tensors = flat(states)
    if train:
        sum((k + 1) * t.sin().sum() for k, t in enumerate(tensors)).backward()
    return [t.detach() for t in tensors], [p.grad for p in cell.parameters() if p.grad is not None], info


def crashes(recipe: dict[str, Any], several: bool) -> bool:
    """Say whether torchdeq cannot run this in eval(): it reads the device of a list."""
    return several and recipe.get("core") == "indexing" and recipe.get("f_solver", "").startswith("simple")
