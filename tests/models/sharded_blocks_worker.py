"""What each of two processes does; a module of its own, because spawned processes import it by name."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from deqlm.models import ImplicitLM
from deqlm_solvers import Stop
from models.families import VOCAB, make

FAMILIES = ("mamba2", "llama")
BUDGET = Stop(max_iter=6, rtol=0)
TOGETHER = Stop(max_iter=400, rtol=1e-11, collective=True)


def model(family: str) -> ImplicitLM:
    torch.manual_seed(0)
    return make(family)


def batch() -> Tensor:
    torch.manual_seed(5)
    return torch.randint(VOCAB, (4, 7))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meet, wait = f"file://{folder}/meet", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=wait)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, found = init_device_mesh("cpu", (2,)), {}
    ids = batch()[2 * rank : 2 * rank + 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family in FAMILIES:
            made = model(family)
            for part in (*made.backbone.layers, made):
                fully_shard(part, mesh=mesh)
            made(ids, labels=ids, stop=BUDGET).loss.backward()  # gradients are averaged over the two
            gradients = {name: p.grad.full_tensor() for name, p in made.named_parameters()}
            with torch.no_grad():
                logits = made(ids, stop=BUDGET).logits
            try:
                made(ids, labels=ids)
                refused = ""
            except RuntimeError as error:
                refused = str(error)
            with torch.no_grad():
                by_mode = {mode: made(ids, stop=TOGETHER, mode=mode).logits for mode in ("auto", "sequential")}
            made(ids, labels=ids, stop=TOGETHER).loss.backward()
            found[family] = logits, gradients, refused, by_mode
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
