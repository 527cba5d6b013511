"""Wrap a transformer layer as implicit, train it on text, and compare it with the same layer used once.

Two models with the same parameters (one nn.TransformerEncoderLayer, embedding, head) learn to predict the next byte of
Python's own help pages. The wrapped one returns the fixed point z = layer(z + u); the plain one returns layer(u). Both
start from the same weights and see the same batches. The wrapped model trains for --steps steps at --lr. Then the plain
model trains for as many steps, and on until it has used as much CPU time, once for each of --plain-lrs. Everything is
printed, good or bad.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from data import Batches, load_bytes, validation_windows
from model import ByteModel
from report import describe, result_table, save
from torch import Tensor, nn

from deqlm.reporting.environment import environment
from deqlm.reporting.progress import Progress

WIDTH, HEADS, LENGTH, BATCH = 64, 4, 64, 16
WARM_UP = 20
EPILOG = """
what a line of the log says:
  evaluations     how often the layer was evaluated until a sequence was solved, mean over the batch
  adjoint         products with the transposed Jacobian in the backward solve, mean over the batch
  worst residual  largest ||layer(z + u) - z|| / ||layer(z + u)|| of a sequence
  not converged   sequences whose forward / backward solve ended outside its tolerance

try:
  python examples/wrap_your_layer/train.py --steps 20                  does it run?
  python examples/wrap_your_layer/train.py --out runs/wrap --seed 1    the whole comparison, written to disk
"""


def main() -> None:
    """Train, compare, report."""
    args = parse_arguments()
    began = time.perf_counter()
    torch.set_num_threads(args.threads)
    data = load_bytes()
    parameters = sum(p.numel() for p in build(args.seed, implicit=True).parameters())
    print(f"text: {sum(map(len, data)):,} bytes of Python's help pages, the last tenth held out")
    print(f"model: {parameters:,} parameters, wrapped or not; {BATCH} windows of {LENGTH} bytes per step")

    wrapped = train(data, args, implicit=True, lr=args.lr, least_seconds=0.0)
    budget = wrapped["cpu_seconds"]
    plain = [train(data, args, implicit=False, lr=lr, least_seconds=budget) for lr in args.plain_lrs]

    took = time.perf_counter() - began
    print(f"\n{result_table(wrapped, plain)}\n\ntook {took:.0f} s on {args.threads} thread(s)")
    if args.out is not None:
        record = {
            "settings": {key: value for key, value in vars(args).items() if key != "out"},
            "environment": environment(),
            "model": {"width": WIDTH, "heads": HEADS, "length": LENGTH, "batch": BATCH, "parameters": parameters},
            "took_seconds": took,
            "wrapped": wrapped,
            "plain": plain,
        }
        print(f"wrote {', '.join(save(args.out, record))} into {args.out}")


def build(seed: int, *, implicit: bool) -> ByteModel:
    """Return a model; equal seeds give equal weights, wrapped or not."""
    torch.manual_seed(seed)
    return ByteModel(implicit=implicit, width=WIDTH, heads=HEADS, length=LENGTH)


def train(
    data: tuple[Tensor, Tensor], args: argparse.Namespace, *, implicit: bool, lr: float, least_seconds: float
) -> dict[str, Any]:
    """Train one model for ``args.steps`` steps, and on until it has used ``least_seconds`` of CPU time.

    CPU time and not wall time, so that other work on the machine does not bend the comparison; validation is not
    counted. Returns the curve, and the validation loss at both ends.
    """
    model = build(args.seed, implicit=implicit)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARM_UP, total_iters=WARM_UP)
    batches = Batches(data[0], BATCH, LENGTH, args.seed)
    held_out = validation_windows(data[1], LENGTH)
    name = "wrapped" if implicit else "plain"
    print(f"\n{name}, learning rate {lr:g}")
    bar = Progress(args.steps if implicit else round(least_seconds), name=name, unit="step" if implicit else "CPU s")

    curve: list[dict[str, float]] = []
    notes: list[dict[str, float]] = []
    at_equal_steps, spent, step = float("nan"), 0.0, 0
    while step < args.steps or spent < least_seconds:
        began = time.process_time()
        notes.append(train_step(model, optimizer, batches))
        warm_up.step()
        spent += time.process_time() - began
        step += 1
        bar.reach(step if implicit else round(min(spent, least_seconds)))
        if step % args.every == 0 or step == args.steps:
            loss = validate(model, held_out)
            curve.append({"step": step, "cpu_seconds": spent, "validation": loss, **summarize(notes)})
            notes = []
            if step <= args.steps:
                bar.log(describe(curve[-1]))
            if step == args.steps:
                at_equal_steps = loss
    bar.close()
    at_equal_time = validate(model, held_out)
    if step > args.steps:
        print(f"  step {step:4d}  validation {at_equal_time:.3f}, after {spent:.0f} s of CPU time like the wrapped one")
    return {
        "model": name,
        "lr": lr,
        "steps": step,
        "cpu_seconds": spent,
        "at_equal_steps": at_equal_steps,
        "at_equal_time": at_equal_time,
        "curve": curve,
    }


def train_step(model: ByteModel, optimizer: torch.optim.Optimizer, batches: Batches) -> dict[str, float]:
    """Take one step; return its loss and, for the wrapped model, what the solvers did."""
    text, target = batches.next()
    logits, sol = model(text)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if sol is None:
        return {"train": loss.item()}
    return {
        "train": loss.item(),
        "evaluations": sol.steps.double().mean().item(),
        "adjoint": sol.adjoint.steps.double().mean().item(),
        "residual": sol.relative.max().item(),
        "failed": int(sol.failed.sum()),
        "adjoint_failed": int((~sol.adjoint.converged).sum()),
    }


def summarize(notes: list[dict[str, float]]) -> dict[str, float]:
    """Return the means of losses and counts, the worst residual, and how many solves failed in all."""
    columns = {key: [note[key] for note in notes] for key in notes[0]}
    how = {"residual": max, "failed": sum, "adjoint_failed": sum}
    return {key: how.get(key, lambda values: sum(values) / len(values))(values) for key, values in columns.items()}


@torch.no_grad()
def validate(model: ByteModel, held_out: tuple[Tensor, Tensor]) -> float:
    """Return the mean loss on the held-out windows, in nats per byte."""
    model.eval()
    total = 0.0
    for text, target in zip(*(part.split(BATCH) for part in held_out), strict=True):
        logits, _ = model(text)
        total += nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
    model.train()
    return total / held_out[1].numel()


def parse_arguments() -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of the wrapped model (default 200)")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate of the wrapped model (default 0.003)")
    parser.add_argument(
        "--plain-lrs",
        type=float,
        nargs="+",
        metavar="LR",
        default=[1e-3, 3e-3, 1e-2],
        help="learning rates of the plain model, of which the best counts (default 0.001 0.003 0.01)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default 0)")
    parser.add_argument("--every", type=int, default=50, help="steps per line of the log (default 50)")
    parser.add_argument("--threads", type=int, default=1, help="threads; so small a model gains little (default 1)")
    parser.add_argument("--out", type=Path, help="folder for result.json, curves.png, curves.svg")
    args = parser.parse_args()
    for name in ("steps", "every", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(args, name)}")
    return args


if __name__ == "__main__":
    main()
