"""Whose gradients of a loop are right: autograd through torch's loops, methods by hand and ours, eager and compiled.

    PYTHONPATH=.:solvers python tests/benchmarks/trusted_gradients.py --record docs/records/trusted_gradients.json
    PYTHONPATH=.:solvers python tests/benchmarks/trusted_gradients.py --page docs/records/trusted_gradients.json

A tanh map in float64, iterated until it stands still; the truth are central differences of the plain loop. What is
compiled is compiled by a backend that needs no C++ compiler, or by ``--backend inductor``. Minutes, most of them spent
by compilers.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deqlm
from deqlm.reporting.environment import environment
from deqlm.reporting.page import redraw, table

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "guides" / "trust_gradients.md"
STEPS, ROWS, N = 80, 3, 4
STOP = deqlm.Stop(max_iter=200, rtol=1e-13)
BACKWARD = deqlm.Implicit(solve=deqlm.Solve("anderson", deqlm.Stop(max_iter=200, rtol=1e-12)))
OURS: dict[str, tuple[str, Any]] = {
    "implicit": ("anderson", BACKWARD),
    "phantom, 40 steps": ("anderson", deqlm.Phantom(40, 1.0)),
    "phantom, 4 steps": ("anderson", deqlm.Phantom(4, 1.0)),
    "one_step": ("anderson", "one_step"),
    "unrolled": ("fixed_point", "unrolled"),
    "unrolled, checkpoint": ("fixed_point", deqlm.Unrolled(checkpoint=True)),
}
Loop = Callable[[nn.Module, Tensor], Tensor]


class Map(nn.Module):
    """tanh(z W^T + b) with a W that contracts."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.25 * torch.randn(N, N, generator=g, dtype=torch.float64))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the next point."""
        return torch.tanh(z @ self.weight.T + x)


def plain(f: nn.Module, x: Tensor) -> Tensor:
    """Return the point after all steps, with their graph."""
    z = torch.zeros_like(x)
    for _ in range(STEPS):
        z = f(z, x)
    return z


def by_while_loop(f: nn.Module, x: Tensor) -> Tensor:
    """Return the same by `while_loop`, through which autograd goes."""
    from torch._higher_order_ops.while_loop import while_loop

    start = x.new_zeros((), dtype=torch.int64), torch.zeros_like(x)
    return while_loop(lambda k, z: k < STEPS, lambda k, z: (k + 1, f(z, x)), start)[1]  # type: ignore[return-value]


def by_scan(f: nn.Module, x: Tensor) -> Tensor:
    """Return the same by `scan`."""
    from torch._higher_order_ops.scan import scan

    def step(z: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        new = f(z, x)
        return new, new.sum()

    return scan(step, torch.zeros_like(x), x.new_zeros(STEPS, 1))[0]


def by_checkpoint(f: nn.Module, x: Tensor) -> Tensor:
    """Return the same with activation checkpoints."""
    z = torch.zeros_like(x)
    for _ in range(STEPS):
        z = checkpoint(f, z, x, use_reentrant=False)
    return z


def by_hand(steps: int) -> Loop:
    """Return the loop whose last steps alone have a graph: one is the one-step gradient, more the phantom one."""

    def loop(f: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = plain(f, x)
        for _ in range(steps):
            z = f(z, x)
        return z

    return loop


LOOPS: dict[str, Loop] = {
    "autograd, Python loop": plain,
    "autograd through while_loop": by_while_loop,
    "autograd through scan": by_scan,
    "checkpoint in a Python loop": by_checkpoint,
    "one step by hand": by_hand(1),
    "4 steps by hand (phantom)": by_hand(4),
}


def truth(f: Map, x: Tensor) -> list[Tensor]:
    """Return the gradients for weight and input by central differences."""
    found = []
    with torch.no_grad():
        for t in (f.weight, x):
            grad = torch.zeros_like(t)
            for i in range(t.numel()):
                before = t.view(-1)[i].item()
                losses = []
                for h in (1e-6, -1e-6):
                    t.view(-1)[i] = before + h
                    losses.append(loss(plain(f, x)).item())
                t.view(-1)[i] = before
                grad.view(-1)[i] = (losses[0] - losses[1]) / 2e-6
            found.append(grad)
    return found


def loss(z: Tensor) -> Tensor:
    """Return a number that weighs all unknowns differently."""
    return (z * torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view_as(z)).sum() + z.square().sum()


def error(run: Callable[[Tensor], Tensor], f: Map, x: Tensor, want: list[Tensor]) -> float | str:
    """Return the largest relative error of the two gradients, or in words why there is none."""
    f.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    try:
        loss(run(x)).backward()
    except Exception as refused:
        return f"refused: {type(refused).__name__}"
    got = [f.weight.grad, x.grad]
    if any(g is None for g in got):
        return "no gradient"
    return max(((g - w).norm() / w.norm()).item() for g, w in zip(got, want, strict=True))  # type: ignore[operator]


def measured(backend: str) -> list[dict[str, Any]]:
    """Return the errors of all ways, each eager and compiled."""
    f, x = Map(), torch.randn(ROWS, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = truth(f, x)
    found = []

    def add(name: str, run: Callable[[Tensor], Tensor], *compiled: Callable[[Tensor], Tensor]) -> None:
        errors = []
        for each in (run, *compiled):
            torch.compiler.reset()
            errors.append(error(each, f, x, want))
        print(name, errors, flush=True)
        found.append({"way": name, "errors": errors})

    for name, loop in LOOPS.items():

        def run(x: Tensor, loop: Loop = loop) -> Tensor:
            return loop(f, x)

        add(name, run, torch.compile(run, backend=backend))
    for name, (solver, gradient) in OURS.items():
        options: dict[str, Any] = {"inject": "argument", "solver": solver, "gradient": gradient, "stop": STOP}
        deq = deqlm.DEQ(f, **options)
        inner = deqlm.DEQ(torch.compile(f, backend=backend), **options)
        add(f"deqlm, {name}", deq, torch.compile(deq, backend=backend), inner)
    return found


def blocks(record: dict[str, Any]) -> dict[str, str]:
    """Return the page's table."""
    rows = []
    for entry in record["ways"]:
        told = [e if isinstance(e, str) else f"{e:.0e}" for e in entry["errors"]]
        rows.append([entry["way"], *told, *["-"] * (3 - len(told))])
    head = ["gradient of a fixed point", "eager", "compiled as a whole", "the layer compiled"]
    return {"trusted": table(head, rows)}


def main() -> None:
    """Write the record, or draw the page from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--record", type=Path, help="measure, and write this file")
    parser.add_argument("--page", type=Path, help="draw the page's table from this record")
    parser.add_argument("--backend", default="aot_eager", help="of torch.compile (default aot_eager)")
    arguments = parser.parse_args()
    if arguments.record is not None:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        record = {"environment": environment(), "backend": arguments.backend, "ways": measured(arguments.backend)}
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")
    if arguments.page is not None:
        redraw(PAGE, blocks(json.loads(arguments.page.read_text())))


if __name__ == "__main__":
    main()
