"""A model that tracks a state of two values, trained in seconds: what the benchmarks of sequence models solve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deqlm import FixedPoint, Phantom, Solve, Stop, Unrolled
from deqlm.layers import Attention, Block, LlamaMLP, Mamba2
from deqlm.models import Backbone, ImplicitLM
from deqlm.models.lm import LMOutput

__all__ = ["FREE", "attention", "parity", "track", "tracker", "train_step"]

TOKENS = 1024
"""Per training step."""
RATE, WARM_UP, MOST = 3e-3, 50, 2000
SHARES = (0.0, 0.5, 0.9)
"""Shares of easy tokens in training, a third of the rows each."""

FREE = Solve(FixedPoint(), Stop(max_iter=24, rtol=0.05, keep="best_f"))


def parity(rows: int, length: int, p: float, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Return tokens and running parities, (rows, length) int64; a token is easy, 0, with probability p, else random."""
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    hard = torch.rand(rows, length, generator=draw) >= p
    ids = torch.randint(2, (rows, length), generator=draw) * hard
    return ids, ids.cumsum(1) % 2


def tracker() -> ImplicitLM:
    """Return one implicit Mamba2 layer of width 32, untrained."""
    backbone = Backbone([Block(Mamba2(32, expand=2, headdim=32, d_state=16))], weight_norm=False)
    return ImplicitLM(backbone, vocab_size=2, labels="aligned", tie=False)


def attention() -> ImplicitLM:
    """Return one implicit transformer layer of width 32 with its initial weights."""
    torch.manual_seed(0)
    backbone = Backbone([Block(Attention(32, n_head=4), mlp=LlamaMLP(32, 64))])
    return ImplicitLM(backbone, vocab_size=2, labels="aligned", tie=False).eval()


def train_step(
    model: ImplicitLM, optimiser: torch.optim.Optimizer, ids: Tensor, labels: Tensor, **how: Any
) -> LMOutput:
    """Take one step; return what the model returned before it."""
    out = model(ids, labels=labels, **how)
    optimiser.zero_grad()
    out.loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return out


def track(seed: int = 0, lengths: tuple[int, ...] = (2, 4, 8, 16)) -> ImplicitLM:
    """Return a trained `tracker`: lengths below 16 unrolled, 16 with phantom steps, each until it is learned."""
    torch.manual_seed(seed)
    model = tracker()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    step = 0
    for length in lengths:
        last = length == 16
        model.solve = FREE if last else Solve(FixedPoint(), Stop(max_iter=length, rtol=0))
        model.gradient = Phantom(4, 0.8) if last else Unrolled()
        running = 0.0
        for _ in range(MOST):
            step += 1
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1.0, step / WARM_UP)
            parts = [parity(TOKENS // length // 3 + 1, length, p) for p in SHARES]
            ids, labels = (torch.cat(side) for side in zip(*parts, strict=True))
            out = train_step(model, optimiser, ids, labels)
            right = out.logits[:, -1].argmax(-1) == labels[:, -1]
            running = 0.8 * running + 0.2 * right.float().mean().item()
            if running > (0.998 if last else 0.9):
                break
    return model.eval()
