"""What each of two processes does; a module of its own, because spawned processes import it by name."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import deqlm

METHODS = ["implicit", "phantom", "unrolled", "one_step"]
CASES = [(method, failed) for method in METHODS for failed in ("none", "one row", "a whole rank")]


def build(method: str) -> deqlm.DEQ:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.mul_(0.5)
    solver = "fixed_point" if method == "unrolled" else "anderson"
    stop = deqlm.Stop(max_iter=200, rtol=1e-10)
    return deqlm.DEQ(nn.Sequential(layer, nn.Tanh()), gradient=method, solver=solver, stop=stop, on_failure="ignore")


def batch(failed: str) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(6, 4, dtype=torch.float64)
    if failed != "none":
        x[4 if failed == "one row" else slice(3, 6)] = torch.nan
    return x


def step(module: nn.Module, x: Tensor, parts: int) -> list[Tensor]:
    (module(x).square().sum() / parts).backward()
    return [p.grad.clone() for p in module.parameters()]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method, failed in CASES:
            module = DistributedDataParallel(build(method))
            x = batch(failed)[3 * rank : 3 * rank + 3]
            first = step(module, x, 1)
            module.zero_grad()
            found[method, failed] = (first, step(module, x, 1))
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
