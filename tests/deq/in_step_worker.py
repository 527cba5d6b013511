"""What each of two processes does that solve in step; a module of its own, because spawned processes import it."""

from __future__ import annotations

import os
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

import deqlm
from deqlm import DEQ, FixedPoint, Implicit, Phantom, Solve, Stop

WAIT = 30
"""Seconds that a process waits for another one."""

TOLERANCE = Stop(max_iter=200, rtol=1e-10, collective=True)
BEST = Stop(max_iter=60, rtol=1e-3, keep="best_f", collective=True)

SETTINGS: dict[str, dict[str, Any]] = {
    "implicit": {"solver": "anderson", "stop": TOLERANCE},
    "torch operations": {"solver": deqlm.Anderson(impl="torch"), "stop": TOLERANCE},
    "given backward": {"stop": TOLERANCE, "gradient": Implicit(solve=Solve(FixedPoint(), TOLERANCE))},
    "broyden, neumann": {"solver": "broyden", "stop": TOLERANCE, "gradient": "neumann"},
    "looks seldom": {"stop": TOLERANCE.replace(check_every=7), "gradient": Phantom(4, 0.8)},
    "best_f": {"solver": "fixed_point", "stop": BEST, "gradient": Phantom(4, 0.8)},
    "never looks": {"stop": Stop(max_iter=60, rtol=1e-10, check_every=0), "gradient": Phantom(4, 0.8)},
    "budget": {"stop": Stop(max_iter=30, rtol=0), "gradient": Phantom(4, 0.8), "solver": "fixed_point"},
    "unrolled": {"solver": "fixed_point", "stop": Stop(max_iter=30, rtol=0), "gradient": "unrolled"},
}
FAILED = ("none", "one row", "a whole process")


class Layer(nn.Module):
    """z, u -> tanh(W z) g + u, where the gain g of a row is in its last input: how hard the row is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, dtype=torch.float64)
        nn.init.orthogonal_(self.inner.weight, 0.99)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(self.inner(z)) * u[:, -1:] + u


def build(setting: str) -> DEQ:
    torch.manual_seed(0)
    return DEQ(Layer(), inject="argument", on_failure="ignore", **SETTINGS[setting])


def batch(failed: str) -> Tensor:
    """Return six rows: the first three, of process 0, are easy, the others hard."""
    torch.manual_seed(1)
    x = torch.randn(6, 4, dtype=torch.float64) * 0.3
    x[:, -1] = torch.tensor([0.05, 0.1, 0.2, 0.8, 0.9, 0.95])
    if failed != "none":
        x[4 if failed == "one row" else slice(3, 6), 0] = torch.nan
    return x


def answers(deq: DEQ, x: Tensor, processes: int) -> dict[str, Any]:
    """Solve with and without grad; return what came of it, gradients of the sum over all rows."""
    y = deq(x)
    (processes * y.square()[y.isfinite()].sum()).backward()  # gradients are averaged over processes
    gradients = [full(p.grad) for p in deq.parameters()]  # later the parameters may be whole ones, without gradients
    with torch.no_grad():
        plain, again = deq(x, with_stats=True)
    return {
        "y": y.detach(),
        "plain": plain.clone(),
        "steps": again.steps.clone(),
        "status": again.status.clone(),
        "evaluations": again.cost.evaluations,
        "gradients": gradients,
    }


def full(grad: Any) -> Tensor:
    return grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone()


def meet(rank: int, folder: str, wait: int = WAIT) -> DeviceMesh:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=wait))
    return init_device_mesh("cpu", (2,))


def work(rank: int, folder: str) -> None:
    mesh, found = meet(rank, folder), {}
    for setting in SETTINGS:
        for failed in FAILED:
            deq = build(setting)
            fully_shard(deq.layer.inner, mesh=mesh)
            found[setting, failed] = answers(deq, batch(failed)[3 * rank : 3 * rank + 3], 2)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def die(rank: int, folder: str) -> None:
    """Process 1 ends in the middle of a solve; process 0 writes what it was told, and after how long."""
    mesh, began = meet(rank, folder, wait=10), time.monotonic()
    deq = DEQ(Layer(), inject="argument", stop=TOLERANCE.replace(max_iter=10**6, rtol=1e-300, patience=None))
    del mesh

    def leave(k: int, z: Tensor, fz: Tensor) -> None:
        if rank == 1 and k == 20:
            os._exit(0)

    said = ""
    try:
        with torch.no_grad():
            deq(batch("none"), on_evaluation=leave)
    except RuntimeError as error:
        said = str(error)
    (Path(folder) / "said.txt").write_text(f"{time.monotonic() - began:.1f} {said}")
    os._exit(0)
