"""An implicit layer is a non-linear RNN: its state-to-state Jacobian is dense, that of the explicit layer diagonal.

For one Mamba2 layer with random weights and one random token, in float64, dh_t/dh_{t-1} is computed by autograd through
the fixed-point solve, by the closed form of the paper, and for the same layer used once. Theorem 1 and equation 10 of
Schoene et al. (2025), Implicit language models are RNNs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from examples.rnn_jacobian.jacobian import Layer, closed_form, explicit, off_diagonal, through_the_solve
from examples.rnn_jacobian.picture import draw


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.rnn_jacobian", description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="numbers of the state (default 64)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="layers and tokens (default 0 1 2 3)"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for jacobian-SEED.svg; needs matplotlib")
    return parser.parse_args()


def compute(width: int, seed: int) -> tuple[dict[str, Tensor], int]:
    """Return the three Jacobians (D, D) of a random layer and token, and the evaluations of the solve."""
    torch.manual_seed(seed)
    layer = Layer(width)
    token = layer.draw()
    solved, sol = through_the_solve(layer, token)
    formula = closed_form(layer, token, sol.z[:1].detach())
    return {"autograd": solved, "closed form": formula, "explicit": explicit(layer, token)}, int(sol.steps.max())


def main() -> None:
    """Compute, compare, draw."""
    args = parse_arguments()
    torch.set_num_threads(1)
    began = time.perf_counter()
    print(f"one Mamba2 layer, state of {args.width} numbers, float64")
    print("seed  evaluations  |autograd - closed form|  largest entry  off the diagonal: implicit  explicit")
    for seed in args.seeds:
        found, evaluations = compute(args.width, seed)
        difference = (found["autograd"] - found["closed form"]).abs().max().item()
        largest = found["autograd"].abs().max().item()
        shares = f"{off_diagonal(found['autograd']):26.4f} {off_diagonal(found['explicit']):9.4f}"
        print(f"{seed:4d} {evaluations:12d} {difference:25.1e} {largest:14.3f} {shares}")
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            draw(found, args.out / f"jacobian-{seed}.svg")
    print(f"took {time.perf_counter() - began:.0f} s on one thread")


if __name__ == "__main__":
    main()
