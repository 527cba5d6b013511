"""The processes of a training: how they meet, what they add up, and what they say when one is gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["World", "leave", "world"]


class World:
    """This process among the others.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        device: of this process.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Return the sums over all processes."""
        if self.size > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def told(self, value: object) -> object:
        """Return the ``value`` of the first process."""
        held = [value]
        if self.size > 1:
            dist.broadcast_object_list(held, src=0)
        return held[0]


def leave(status: int) -> None:
    """End a process of several at once; one that is alone goes on.

    Threads of gloo that wait for a process that died never end, and to take down what holds them would wait for them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def world(device: str, timeout: float) -> Iterator[World]:
    """Meet the other processes that torchrun started, or be alone without torchrun.

    Args:
        device: "cpu" or "cuda"; "auto" takes CUDA where there is one.
        timeout: seconds after which a process that waits for another one that is gone gives up.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    if size > 1:
        # gloo beside nccl carries what lies on the CPU: the checkpoints that are written while training goes on
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield World(rank, size, place)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
