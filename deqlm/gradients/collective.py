"""Layers whose parts talk to other processes at every evaluation, which all of them must then make together."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deqlm.gradients.base import Gradient
from deqlm_solvers import Solve
from deqlm_solvers.core.processes import Processes, several_processes

__all__ = ["processes_in_step"]

_FSDP = "torch.distributed.fsdp"


def processes_in_step(layer: object, solve: Solve, gradient: Gradient, group: Any = None) -> Processes | None:
    """Return the processes that must solve in step, or None where each goes its own way.

    A part that is sharded by itself gathers its parameters from all processes at every evaluation, and each process
    ends its own solve after another number of evaluations. ``Stop(collective=True)`` ends all of them together. A DEQ,
    or a model, that is sharded as a whole gathers them once per call.

    Args:
        layer: what a solve evaluates.
        solve: the forward solve.
        gradient: whose own solves, if it has any, count too where grad mode is on.
        group: of torch.distributed, with ``Stop(collective=True)``; None is all processes.

    Raises:
        RuntimeError: parts of ``layer`` talk, and the processes would wait for each other; with what to do instead.
    """
    talks = _talking(layer) if isinstance(layer, nn.Module) and several_processes() else ""
    if talks and (why := _out_of_step(solve, gradient)):
        raise RuntimeError(
            f"{talks} below the DEQ: processes would wait for each other, because each {why}. Wrap or shard the whole "
            "module that holds the DEQ, or the DEQ itself, or end all together by Stop(collective=True), or use a "
            "budget, Stop(rtol=0), forward and backward (as gradient='phantom' does)"
        )
    return Processes(group) if talks or solve.stop.collective else None


def _out_of_step(solve: Solve, gradient: Gradient) -> str:
    """Return what makes the evaluations of processes differ in number; empty where nothing does."""
    solves = [solve]
    if torch.is_grad_enabled():
        solves += gradient.solves(solve)
        if gradient.through_steps and not solve.stop.is_budget:
            return f"differentiates as many steps as its rows took, by gradient {gradient.name!r}"
    for each in solves:
        if each.solver.steps_evaluate and each.stop.max_iter > 0:
            return f"evaluates as often as its rows need, by solver {each.solver.name!r}"
        alike = each.stop.is_budget or each.stop.collective
        if not alike and (each.stop.check_every or each.stop.test_every == "auto"):
            return "ends its solve after another number of evaluations"
    return ""


def _talking(layer: nn.Module) -> str:
    for name, part in layer.named_modules():
        if does := _talk(part):
            return f"part {name!r} of the layer {does}" if name else f"the layer {does}"
    return ""


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
