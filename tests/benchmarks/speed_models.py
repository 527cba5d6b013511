"""What a training step and a generated token of a language model cost beside the evaluations of f that they make.

    python tests/benchmarks/speed_models.py [--record docs/records/speed_models.json] [--small]

The model is the state-tracking one: width 256, one layer, d_state 128, expand 4. "Bare" is the same work written out by
hand around the backbone: as many evaluations without grad, the phantom steps with it, head, loss, backward; for a token
as many evaluations on one token as its solve made, and the head; weight normalisation, embedding and injection of a
token come on top of that, and folded weights need no normalisation. One thread, interleaved, medians of CPU times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deqlm import FixedPoint, Phantom, Solve, Stop
from deqlm.layers.weight_norm import fold_weight_norm_
from deqlm.models import ImplicitLM, LMOptions, Mamba2Options
from deqlm.reporting.environment import environment

LIMIT = 1.1
TOKENS = 64


def build() -> ImplicitLM:
    """Return the model with initial weights."""
    torch.manual_seed(0)
    mixer = Mamba2Options(d_state=128, expand=4)
    options = LMOptions(vocab_size=60, d_model=256, n_layer=1, mixer=mixer, labels="aligned", implicit=True)
    return options.make()


def bare_step(model: ImplicitLM, ids: Tensor, evaluations: int, phantom: Phantom) -> None:
    """Do by hand what a training step does: forward, loss, backward."""
    e = model.embedding(ids)
    context = model.backbone.open(e)
    u = model.backbone.project(e, context)
    z = torch.zeros_like(e)
    with torch.no_grad():
        for _ in range(evaluations):
            z = model.backbone(z, u, context)
    for _ in range(phantom.steps):
        z = torch.lerp(z, model.backbone(z, u, context), phantom.damping)
    F.cross_entropy(model.head(z).flatten(0, 1), ids.flatten()).backward()


def training(model: ImplicitLM, repeats: int) -> dict[str, Any]:
    """Return seconds of a step by the library and by hand, batch 8, length 256, in both phases of training."""
    ids = torch.randint(60, (8, 256))
    found = {}
    for label, stop, phantom in (
        ("free phase", Stop(max_iter=24, rtol=0.05, keep="best_f"), Phantom(4, 0.8)),
        ("bounded phase", Stop(max_iter=4, rtol=0), Phantom(1, 1.0)),
    ):
        model.solve, model.gradient = Solve(FixedPoint(), stop), phantom

        def ours() -> int:
            out = model(ids, labels=ids)
            out.loss.backward()
            return out.solution.cost.evaluations

        evaluations = ours() - phantom.steps

        def bare(n: int = evaluations, phantom: Phantom = phantom) -> None:
            bare_step(model, ids, n, phantom)

        found[label] = {"evaluations": evaluations, **both(ours, bare, repeats)}
    return found


@torch.no_grad()
def generation(model: ImplicitLM, repeats: int) -> dict[str, Any]:
    """Return seconds per token of generating ``TOKENS`` tokens one by one behind a prompt, and of the evaluations."""
    model.eval()
    ids = torch.randint(60, (1, TOKENS))
    cache = model(torch.randint(60, (1, 32)), use_cache=True).cache
    steps: list[int] = []

    def ours() -> None:
        steps.clear()
        held = cache
        for t in range(TOKENS):
            out = model(ids[:, t : t + 1], cache=held, use_cache=True)
            held = out.cache
            steps.append(out.solution.cost.evaluations)

    ours()
    e = model.embedding(ids[:, :1])
    context = model.backbone.open(e, offset=cache.length)
    u = model.backbone.project(e, context)
    count = sum(steps)

    def bare() -> None:
        z = torch.zeros_like(e)
        for k in range(count):
            z, _ = model.backbone.forward_chunk(z, u, cache.layers, context)
            if k < TOKENS:
                model.head(z)

    return {"evaluations_per_token": count / TOKENS, **both(ours, bare, repeats, per=TOKENS)}


def both(ours: Callable[[], object], bare: Callable[[], object], repeats: int, per: int = 1) -> dict[str, float]:
    """Return median seconds of both, interleaved, and the median of their ratios."""
    taken: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(repeats + 1):
        for name, run in (("ours", ours), ("bare", bare)):
            begun = time.process_time()
            run()
            taken[name].append((time.process_time() - begun) / per)
    first, second = taken["ours"][1:], taken["bare"][1:]
    ratio = statistics.median(a / b for a, b in zip(first, second, strict=True))
    return {"ours_s": statistics.median(first), "bare_s": statistics.median(second), "ratio": ratio, "limit": LIMIT}


def main(argv: list[str]) -> int:
    """Measure, print, and write a record where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="few repeats")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    repeats = 2 if arguments.small else 5
    folded = build()
    fold_weight_norm_(folded)
    found = {
        **training(build(), repeats),
        "generated token": generation(build(), (1 if arguments.small else 5) * repeats),
        "generated token, weights folded": generation(folded, (1 if arguments.small else 5) * repeats),
    }
    for label, values in found.items():
        print(f"{label:32} " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    record = {"record": "speed of models", "environment": environment(), "small": arguments.small, "found": found}
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
