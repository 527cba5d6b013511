"""A classifier with three resolutions in one fixed point, in the manner of multiscale deep-equilibrium models.

Images show a square, a cross or a frame, filled with fine rows or columns, in noise. One layer, a residual block per
resolution and paths between all of them, is solved for its fixed point: once as it is, once with a penalty on its
Jacobian, and, with the same parameters, applied once only. All see the same images.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from deqlm.reporting.environment import environment
from examples.vision.model import Classifier
from examples.vision.report import save, table
from examples.vision.train import test, train

EPILOG = """
the table, on 256 new images:
  accuracy         guessing scores 0.17
  evaluations      how often the layer was evaluated until an image was solved, mean
  not converged    images whose solve ended outside its tolerance
  spectral radius  of the layer's Jacobian at the solution, mean of 16 images; below 1 plain iteration converges

try:
  python -m examples.vision --steps 3                does it run?
  python -m examples.vision --out runs/vision        the whole run, with result.json and a picture
"""


def main(argv: list[str] | None = None) -> int:
    """Train, test, report; return the exit status."""
    args = parse(argv)
    began = time.perf_counter()
    torch.set_num_threads(1)
    runs = [run("implicit", args, penalty=0.0)]
    if args.penalty > 0:
        runs.append(run(f"implicit, penalty {args.penalty:g}", args, penalty=args.penalty))
    runs.append(run("applied once", args, penalty=0.0, implicit=False))
    took = time.perf_counter() - began
    print(f"{table(runs)}\n\n{args.steps} steps each; took {took:.0f} s on one thread")
    if args.out is not None:
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        record = {"settings": settings, "environment": environment(), "took_seconds": took, "runs": runs}
        print(f"wrote {', '.join(save(args.out, record))} into {args.out}")
    return 0


def run(name: str, args: argparse.Namespace, *, penalty: float, implicit: bool = True) -> dict[str, Any]:
    """Train and test one model; equal seeds give all the same weights."""
    torch.manual_seed(args.seed)
    model = Classifier(implicit=implicit)
    trained = train(model, name=name, steps=args.steps, lr=args.lr, penalty=penalty, seed=args.seed)
    parameters = sum(p.numel() for p in model.parameters())
    return {"model": name, "parameters": parameters, "test": test(model, args.seed), **trained}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the settings; a bad one ends with its name, its value and the rule."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.vision",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=200, help="of each model (default %(default)s)")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate (default %(default)s)")
    parser.add_argument(
        "--penalty", type=float, default=1.0, help="weight of the Jacobian penalty; 0 leaves it out (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for result.json and evaluations.svg, evaluations.png")
    args = parser.parse_args(argv)
    rules = [("steps", args.steps >= 1, ">= 1"), ("lr", args.lr > 0, "> 0"), ("penalty", args.penalty >= 0, ">= 0")]
    for name, ok, rule in rules:
        if not ok:
            parser.error(f"--{name} must be {rule}, got {getattr(args, name)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
