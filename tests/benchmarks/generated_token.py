"""A generated token against its bare evaluations, with the weights of the call before and with weights made anew.

python tests/benchmarks/generated_token.py                  # writes docs/records/generated_token.json
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deqlm import Stop
from deqlm.layers import Attention, Block, LlamaMLP, Mamba2
from deqlm.models import Backbone, ImplicitLM
from deqlm.reporting.environment import commit, cpu_name

RECORD = Path(__file__).resolve().parents[2] / "docs/records/generated_token.json"
WIDTH, DEPTH, EVALUATIONS, REPEATS = 256, 12, 6, 15
BLOCKS: dict[str, Callable[[], Block]] = {
    "mamba2": lambda: Block(Mamba2(WIDTH, d_state=64, headdim=32)),
    "llama": lambda: Block(Attention(WIDTH, n_head=4), mlp=LlamaMLP(WIDTH, 2 * WIDTH)),
}


@torch.no_grad()
def measure(family: str) -> dict[str, Any]:
    """Return times of a token over those of its evaluations, the one that commits included; runs are interleaved."""
    torch.manual_seed(0)
    backbone = Backbone([BLOCKS[family]() for _ in range(DEPTH)])
    model = ImplicitLM(backbone, vocab_size=500, on_failure="ignore").eval()
    ids, stop = torch.randint(500, (1, 64)), Stop(max_iter=EVALUATIONS, rtol=0)
    cache = model(ids, use_cache=True, stop=stop).cache
    e = model.embedding(ids[:, :1])
    context = backbone.open(e, offset=cache.length, kept=cache.kept)
    u, z = backbone.project(e, context), torch.zeros_like(e)

    def token(held: Any) -> None:
        model(ids[:, :1], cache=held, use_cache=True, stop=stop, mode="sequential")

    runs = {
        "kept": lambda: token(cache),
        "anew": lambda: token(cache._replace(kept=None)),
        "bare": lambda: [backbone(z, u, context, cache.layers) for _ in range(EVALUATIONS + 1)],
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(REPEATS + 2):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if index >= 2:
                times[name].append(time.perf_counter() - begun)
    ratios = {name: [a / b for a, b in zip(times[name], times["bare"], strict=True)] for name in ("kept", "anew")}
    medians = {f"{name}_over_bare": round(statistics.median(each), 3) for name, each in ratios.items()}
    return {**medians, "seconds": times}


if __name__ == "__main__":
    torch.set_num_threads(1)
    about = {"cpu": cpu_name(), "torch": torch.__version__, "commit": commit(), "seed": 0}
    sizes = {"width": WIDTH, "depth": DEPTH, "evaluations": EVALUATIONS, "repeats": REPEATS, "threads": 1}
    found = {family: measure(family) for family in BLOCKS}
    RECORD.write_text(json.dumps({**about, **sizes, "families": found}, indent=1) + "\n")
    print({family: {k: v for k, v in each.items() if k != "seconds"} for family, each in found.items()})
