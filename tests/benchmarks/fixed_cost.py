"""What a call of one evaluation costs beside f, next to torchdeq's barest loop and to the interpreter alone.

    PYTHONPATH=.:solvers python tests/benchmarks/fixed_cost.py [--rounds 300] [--out docs/records/fixed_cost.json]

4 rows of 8 unknowns, one thread, in turns; the least of many short samples, because what a busy machine adds is no cost
of ours. "floor" is a chain of as many empty Python functions as `deqlm.solve` enters, and as many small operations of
torch: nothing is checked, kept or told by it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import deqlm
from deqlm.reporting.environment import environment

CALLS = 4
OPERATIONS = 8
"""Of torch, beside f, in a `deqlm.solve` of one evaluation: the start, the point, the workspace, the report, noise."""


def contenders() -> dict[str, tuple[bool, Callable[[], Any]]]:
    """Return calls by name, each with whether grad mode is on."""
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh()).eval(), torch.randn(4, 8)
    z0 = torch.zeros(4, 8)

    def f(z: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
        return layer(z + x)

    calls: dict[str, tuple[bool, Callable[[], Any]]] = {"f": (False, lambda: f(z0)), "f, grad": (True, lambda: f(z0))}
    try:
        from torchdeq.solver import get_solver

        bare = get_solver("simple_fixed_point_iter")
        calls["torchdeq simple_fixed_point_iter"] = False, lambda: bare(f, z0, max_iter=1)
    except ImportError:
        pass
    for name, stop in {"tolerance": deqlm.Stop(max_iter=1), "budget": deqlm.Stop(max_iter=1, rtol=0)}.items():
        options: dict[str, Any] = {"solver": "fixed_point", "stop": stop, "on_failure": "ignore"}
        how, deq = deqlm.Solve("fixed_point", stop), deqlm.DEQ(layer, **options)
        calls[f"Solve, {name}"] = False, lambda how=how: how(f, z0)
        calls[f"solve, {name}"] = False, lambda options=options: deqlm.solve(f, z0, **options)
        calls[f"DEQ, {name}"] = False, lambda deq=deq: deq(x)
        for gradient in ("implicit", "phantom", "one_step"):
            train = deqlm.DEQ(layer, gradient=gradient, **options)
            calls[f"DEQ, {name}, {gradient}, grad"] = True, lambda train=train: train(x)
            calls[f"DEQ, {name}, {gradient}, grad and backward"] = True, lambda train=train: train(x).sum().backward()
    frames = entered(calls["solve, tolerance"][1])
    calls[f"floor: {frames} empty functions, {OPERATIONS} operations"] = False, floor(frames)
    return calls


def entered(call: Callable[[], Any]) -> int:
    """Return how many Python functions a call enters, f's own included."""
    count = 0

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call"

    with torch.no_grad():
        call()
        sys.setprofile(look)
        try:
            call()
        finally:
            sys.setprofile(None)
    return count


def floor(frames: int) -> Callable[[], Any]:
    """Return a call that enters ``frames`` functions that do nothing, and makes `OPERATIONS` small tensors."""

    def nothing(a: object, b: object) -> object:
        return a

    def call() -> None:
        for _ in range(frames):
            nothing(1, 2)
        for _ in range(OPERATIONS):
            torch.empty(4)

    return call


def measured(rounds: int) -> dict[str, float]:
    """Return microseconds of a call beside f, by name; those of f itself and of the floor as they are."""
    calls = contenders()
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, (grad, call) in calls.items():
            with torch.set_grad_enabled(grad):
                call()
                begun = time.perf_counter()
                for _ in range(CALLS):
                    call()
                best[name] = min(best[name], (time.perf_counter() - begun) / CALLS)
    bare = {False: best["f"], True: best["f, grad"]}
    whole = ("f", "floor")
    return {n: 1e6 * (t if n.startswith(whole) else t - bare[calls[n][0]]) for n, t in best.items()}


def main() -> None:
    """Print the costs, and keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=300, help="samples of each call (default 300)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    costs = measured(arguments.rounds)
    for name, cost in costs.items():
        print(f"{name:55} {cost:8.1f} us")
    if arguments.out is not None:
        record = {"environment": environment(), "microseconds": costs}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
