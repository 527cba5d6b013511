"""Layers whose parts talk to other processes at every evaluation, which all of them must then make together."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deqlm.gradients.base import Gradient
from deqlm_solvers import Solve

__all__ = ["refuse_collective"]

_FSDP = "torch.distributed.fsdp"


def refuse_collective(layer: object, solve: Solve, gradient: Gradient) -> None:
    """Raise where processes would wait for each other: parts of ``layer`` talk, and a solve ends by a test.

    A part that is sharded by itself gathers its parameters from all processes at every evaluation, and each process
    ends its own solve after another number of evaluations. A DEQ, or a model, that is sharded as a whole gathers them
    once per call.

    Args:
        layer: what a solve evaluates.
        solve: the forward solve.
        gradient: whose own solve, if it has one, counts too where grad mode is on.

    Raises:
        RuntimeError: with what to do instead.
    """
    if not isinstance(layer, nn.Module) or not _several_processes():
        return
    solves: list[Any] = [solve]
    if torch.is_grad_enabled():
        solves.append(getattr(gradient.for_solve(solve), "solve", None))
    if all(each.stop.is_budget for each in solves if isinstance(each, Solve)):
        return
    for name, part in layer.named_modules():
        if does := _talk(part):
            where = f"part {name!r} of the layer" if name else "the layer"
            raise RuntimeError(
                f"{where} {does} below the DEQ: processes would wait for each other, because each ends its solve "
                "after another number of evaluations. Wrap or shard the whole module that holds the DEQ, or the DEQ "
                "itself, or use a budget, Stop(rtol=0), forward and backward (as gradient='phantom' does)"
            )


def _talk(part: nn.Module) -> str:
    """Return what a module does at every evaluation that all processes must do; empty where it does nothing."""
    if _FSDP in sys.modules:
        fsdp = sys.modules[_FSDP]
        if isinstance(part, fsdp.FSDPModule | fsdp.FullyShardedDataParallel):
            return "is sharded"
    if isinstance(part, DistributedDataParallel) and part.will_sync_module_buffers():
        return "sends its buffers"
    if isinstance(part, nn.SyncBatchNorm) and (part.training or not part.track_running_stats):
        return "averages over the rows of all processes"
    return ""


def _several_processes() -> bool:
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1
