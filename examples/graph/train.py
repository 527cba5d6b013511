"""Training on chains of many lengths, and accuracy against length."""

from __future__ import annotations

import time

import torch
from torch import nn

from deqlm.reporting.progress import Progress
from examples.graph.data import chain, labelled_chains

BATCH = 32
TEST_ROWS = 256


def train(model: nn.Module, *, name: str, steps: int, longest: int, lr: float, seed: int) -> float:
    """Train on chains of 2 to ``longest`` nodes, all of one length in a step; return the CPU seconds.

    Equal seeds give every model the same batches.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began = time.process_time()
    with Progress(steps, name=name, unit="step") as bar:
        for _ in range(steps):
            nodes = int(torch.randint(2, longest + 1, (), generator=generator))
            x, label = labelled_chains(BATCH, nodes, generator)
            loss = nn.functional.cross_entropy(model(x, chain(nodes)), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.step(f"loss {loss.item():.3f}")
    return time.process_time() - began


@torch.no_grad()
def accuracy(model: nn.Module, nodes: int, seed: int) -> float:
    """Return the share of right answers on chains of ``nodes`` nodes."""
    generator = torch.Generator().manual_seed(seed + 1000)
    x, label = labelled_chains(TEST_ROWS, nodes, generator)
    return (model(x, chain(nodes)).argmax(dim=-1) == label).double().mean().item()
