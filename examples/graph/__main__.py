"""A graph layer that is solved hears the whole graph; one of fixed depth hears as far as it is deep.

A chain carries its label on the first node, and the last node must name it. One implicit layer, z = tanh(A z W + u),
with W held below norm 1 so that it converges by construction, stands beside explicit layers of several depths that have
no more parameters. All are trained on the same chains of 2 to --longest nodes and tested on longer ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deqlm.reporting.environment import environment
from examples.graph.model import ExplicitGNN, ImplicitGNN, count, explicit_width
from examples.graph.report import save, table
from examples.graph.train import accuracy, train

LENGTHS = (2, 4, 8, 16, 32, 64, 128, 256)
EPILOG = """
the table:
  L=n    accuracy on the last node of chains of n nodes; guessing scores 0.25
  evals  how often the layer was evaluated on the longest chains: found by the solver, or the depth

try:
  python -m examples.graph --steps 20                does it run?
  python -m examples.graph --out runs/graph          the whole run, with result.json and a picture
"""


def main(argv: list[str] | None = None) -> int:
    """Train, test, report; return the exit status."""
    args = parse(argv)
    began = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    implicit = ImplicitGNN(args.width, args.bound)
    runs = [run("implicit", implicit, 1, args)]
    for depth in args.depths:
        torch.manual_seed(args.seed)
        explicit = ExplicitGNN(explicit_width(depth, count(implicit)), depth)
        runs.append(run(f"explicit, {depth} layers", explicit, depth, args))
    took = time.perf_counter() - began
    print(f"{table(runs)}\n\ntrained on 2 to {args.longest} nodes; took {took:.0f} s on one thread")
    if args.out is not None:
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        record = {"settings": settings, "environment": environment(), "took_seconds": took, "runs": runs}
        print(f"wrote {', '.join(save(args.out, record))} into {args.out}")
    return 0


def run(name: str, model: nn.Module, depth: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one model and test it on every length."""
    spent = train(model, name=name, steps=args.steps, longest=args.longest, lr=args.lr, seed=args.seed)
    tests = []
    for nodes in LENGTHS:
        tests.append({"nodes": nodes, "accuracy": accuracy(model, nodes, args.seed)})
        if isinstance(model, ImplicitGNN):
            tests[-1]["evaluations"] = int(model.deq.last.steps.max())
            tests[-1]["failed"] = int(model.deq.last.failed.sum())
    return {"model": name, "depth": depth, "parameters": count(model), "cpu_seconds": spent, "tests": tests}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the settings; a bad one ends with its name, its value and the rule."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.graph",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=600, help="of each model (default %(default)s)")
    parser.add_argument("--longest", type=int, default=32, help="nodes of the longest trained chain (%(default)s)")
    parser.add_argument("--width", type=int, default=32, help="features per node, implicit (default %(default)s)")
    parser.add_argument("--bound", type=float, default=0.98, help="of the norm of W, in (0, 1) (default %(default)s)")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 16], help="of explicit models (default 4 16)")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and chains (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for result.json and chains.svg, chains.png")
    args = parser.parse_args(argv)
    rules = [
        ("steps", args.steps >= 1, ">= 1"),
        ("longest", args.longest >= 2, ">= 2"),
        ("width", args.width >= 1, ">= 1"),
        ("bound", 0 < args.bound < 1, "in (0, 1)"),
        ("depths", min(args.depths) >= 1, ">= 1"),
        ("lr", args.lr > 0, "> 0"),
    ]
    for name, ok, rule in rules:
        if not ok:
            parser.error(f"--{name} must be {rule}, got {getattr(args, name)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
