"""What each of two processes does; a module of its own, because spawned processes import it by name."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import deqlm
from deqlm.layers import Block, Context, LlamaMLP, Mamba2, weight_norm_

CASES = {"whole, weights held": (False, True), "block by block, weights computed anew": (True, False)}


class Model(nn.Module):
    """One implicit block with normalised weights; ``held`` says whether a context keeps them."""

    def __init__(self, held: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = weight_norm_(Block(Mamba2(16, d_state=4, headdim=8), mlp=LlamaMLP(16, 24)))
        self.norm = nn.RMSNorm(16)
        self.inject = weight_norm_(nn.Linear(16, self.block.d_inject))
        self.held = held
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        context = Context.open(self, x) if self.held else None
        u = self.inject(x)
        return deqlm.solve(
            lambda z, u: 0.1 * self.norm(self.block(z, u, context)),
            torch.zeros_like(x),
            args=(u,),
            solver="fixed_point",
            gradient=deqlm.Phantom(steps=4, damping=0.8),
            stop=deqlm.Stop(max_iter=8, rtol=0, atol=0),
        ).z


def batch() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 6, 16, dtype=torch.float64)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, found = init_device_mesh("cpu", (2,)), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case, (by_block, held) in CASES.items():
            model = Model(held)
            if by_block:
                fully_shard(model.block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            y = model(batch()[2 * rank : 2 * rank + 2])
            (2 * y.square().sum()).backward()  # gradients are averaged over the two
            found[case] = y.detach(), {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
