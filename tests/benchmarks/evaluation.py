"""What the section "evaluation" costs, and how far scores move with the batch, beside the default and two others.

    python tests/benchmarks/evaluation.py [--record docs/records/evaluation.json] [--steps 150]

Both families, two blocks of width 64, untrained and after some steps on the text of docs/guides. Eight texts of 10 to
96 letters are scored together, padded on the right without a mask as lm-eval does, and one by one. "truth" is the same
model in float64, every token by Anderson to 1e-11. One thread, sections by turns, medians of wall-clock times.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqlm import Anderson, Chunked, Sequential, Solve, Stop
from deqlm.hf import (
    ImplicitForCausalLM,
    ImplicitLlamaConfig,
    ImplicitLlamaForCausalLM,
    ImplicitMamba2Config,
    ImplicitMamba2ForCausalLM,
)
from deqlm.reporting.environment import environment

GUIDES = Path(__file__).resolve().parents[2] / "docs/guides"
LENGTHS = (96, 90, 80, 70, 60, 50, 30, 10)
SIZES: dict[str, Any] = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2}
FAMILIES: dict[str, Callable[[], ImplicitForCausalLM]] = {
    "attention": lambda: ImplicitLlamaForCausalLM(ImplicitLlamaConfig(**SIZES)),
    "mamba2": lambda: ImplicitMamba2ForCausalLM(ImplicitMamba2Config(**SIZES)),
}


def letters() -> Tensor:
    """Return the guides as numbers below 256."""
    text = "".join(page.read_text() for page in sorted(GUIDES.glob("*.md")))
    return torch.tensor([min(ord(letter), 255) for letter in text])


def train(model: ImplicitForCausalLM, data: Tensor, steps: int) -> ImplicitForCausalLM:
    """Train by AdamW on 16 pieces of 64 letters a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = torch.stack([data[at : at + 64] for at in torch.randint(len(data) - 64, (16,)).tolist()])
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def sections(model: ImplicitForCausalLM) -> dict[str, ImplicitForCausalLM]:
    """Return copies of the model that solve in the ways that are compared."""
    found = {name: copy.deepcopy(model) for name in ("default", "evaluation", "anderson", "sequential")}
    found["evaluation"].set_deq("evaluation")
    found["anderson"].no_grad = Solve(Anderson(), Stop(max_iter=200, rtol=1e-6, per="token"))
    found["anderson"].lm.mode = Chunked(16)
    found["sequential"].lm.mode = Sequential()
    return found


@torch.inference_mode()
def scores(model: ImplicitForCausalLM, ids: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    """Return the log-probability of each token but the first, of each row."""
    logits = model(ids, use_cache=False, on_failure="ignore").logits.log_softmax(-1)
    return [logits[i, : n - 1].gather(-1, ids[i, 1:n, None])[:, 0] for i, n in enumerate(lengths)]


def measure(model: ImplicitForCausalLM, ids: Tensor, repeats: int) -> dict[str, Any]:
    """Return times and differences of every section."""
    exact = copy.deepcopy(model).double()
    exact.no_grad, exact.lm.mode = Solve(Anderson(), Stop(max_iter=500, rtol=1e-11, per="token")), Sequential()
    truth = scores(exact, ids, LENGTHS)
    with torch.no_grad():
        solved = exact(ids, on_failure="ignore").solution.converged.tolist()
    found: dict[str, Any] = {"truth_converged": solved}
    ways = sections(model)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begun = time.perf_counter()
            together = scores(way, ids, LENGTHS)
            between = time.perf_counter()
            alone = [scores(way, ids[i : i + 1, :n], (n,))[0] for i, n in enumerate(LENGTHS)]
            times[name].append((between - begun, time.perf_counter() - between))
            found[name] = {
                "moves_token": max((a - b).abs().max().item() for a, b in zip(together, alone, strict=True)),
                "moves_text": max((a - b).sum().abs().item() for a, b in zip(together, alone, strict=True)),
                "from_truth": max((a - b).abs().max().item() for a, b in zip(together, truth, strict=True)),
            }
    for name, each in times.items():
        batch, single = zip(*each, strict=True)
        found[name] |= {"batch_s": statistics.median(batch), "one_by_one_s": statistics.median(single), "raw_s": each}
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, found = letters(), {}
    for name, make in FAMILIES.items():
        for steps in (0, arguments.steps):
            torch.manual_seed(0)
            model = train(make(), data, steps)
            ids = torch.stack([data[at : at + 96] for at in torch.randint(len(data) - 96, (8,)).tolist()])
            for row, length in zip(ids, LENGTHS, strict=True):
                row[length:] = 0
            found[f"{name}, {steps} steps"] = measure(model, ids, arguments.repeats)
            print(name, steps, json.dumps(found[f"{name}, {steps} steps"]), flush=True)
    if arguments.record:
        record = {"record": "evaluation", "environment": environment(), "lengths": LENGTHS, "found": found}
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
