"""Layers whose parts gather their parameters at every evaluation, which all processes must then make together."""

from __future__ import annotations

import sys

import torch
from torch import nn

from deqlm.gradients.base import Gradient
from deqlm_solvers import Solve

__all__ = ["refuse_sharded"]

_FSDP = "torch.distributed.fsdp"


def refuse_sharded(layer: object, solve: Solve, gradient: Gradient) -> None:
    """Raise where processes would wait for each other: parts of ``layer`` are sharded, and a solve ends by a test.

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
    if _FSDP not in sys.modules or not isinstance(layer, nn.Module) or not _several_processes():
        return
    fsdp = sys.modules[_FSDP]
    kinds = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    sharded = next((name for name, part in layer.named_modules() if isinstance(part, kinds)), None)
    if sharded is None:
        return
    solves = [solve, getattr(gradient, "solve", None)] if torch.is_grad_enabled() else [solve]
    if any(isinstance(each, Solve) and not each.stop.is_budget for each in solves):
        where = f"part {sharded!r} of the layer" if sharded else "the layer"
        raise RuntimeError(
            f"{where} is sharded below the DEQ: its processes would wait for each other, because each ends its solve "
            "after another number of evaluations. Shard the whole module that holds the DEQ, or the DEQ itself, or "
            "use a budget, Stop(rtol=0), forward and backward (as gradient='phantom' does)"
        )


def _several_processes() -> bool:
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1
