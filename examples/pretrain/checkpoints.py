"""Checkpoints of torch.distributed.checkpoint that are written while training goes on, and are whole or not there.

A checkpoint is a folder. It is written under another name; when all processes have written their parts and the list of
parts is on the disk, which torch does last, it takes its name. A kill or a full disk leaves the ones before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from deqlm.training import CheckpointError, get_random_state, set_random_state, write_atomically
from deqlm.training.experiment import differences
from examples.pretrain.processes import World

__all__ = ["Checkpoints"]

NAME = re.compile(r"step-(\d{8,})")
BOOK = "training.json"
ERRORS = (Exception, CheckpointException)
"""What can be raised: torch's own error, which holds those of all processes, is no ``Exception``."""


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: of the training.
        experiment: JSON data that a checkpoint must have been written with.
        world: the processes.
        keep: newest ones that stay.
    """

    def __init__(self, folder: Path, experiment: dict[str, Any], world: World, *, keep: int = 2) -> None:
        self.folder, self.experiment, self.world, self.keep = folder, experiment, world, keep
        self.saved: Path | None = None
        self._pending: tuple[Any, Path] | None = None
        if world.first:
            # what a kill left half written
            for part in folder.glob("step-*.part"):
                shutil.rmtree(part, ignore_errors=True)
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint, the same in all processes."""
        found = self._all()
        return self.world.told(found[-1] if found else None)  # type: ignore[return-value]

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Bring weights and optimizer back; return the book of the training.

        Raises:
            CheckpointError: it is of another experiment, with the fields that differ, or damaged.
        """
        try:
            book = json.loads((path / BOOK).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}; remove it to go on from the one before") from error
        if different := differences(book["experiment"], self.experiment):
            raise CheckpointError(
                f"{path} belongs to another experiment: {different}; go back to its settings, or choose another --out"
            )
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        try:
            with _alone_is_fine():
                dcp.load(state, storage_reader=dcp.FileSystemReader(path))
        except ERRORS as error:
            raise CheckpointError(
                f"{path} is damaged: {_why(error)}; remove it to go on from the one before"
            ) from error
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        mine = path / f"random-{self.world.rank}.pt"
        if book["processes"] == self.world.size and mine.exists():
            set_random_state(torch.load(mine, weights_only=True))
        self.saved = path
        return book["state"]

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Begin to write a checkpoint; what this call sees is what is written, whatever training does meanwhile.

        Raises:
            OSError: this or the checkpoint before could not be written; those that are there stay.
        """
        self.finish()
        part = self.folder / f"step-{step:08d}.part"
        if self.world.first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self.world.barrier()
        try:
            torch.save(get_random_state(), part / f"random-{self.world.rank}.pt")
            if self.world.first:
                book = {"experiment": self.experiment, "processes": self.world.size, "state": state}
                write_atomically(part / BOOK, json.dumps(book).encode())
            weights, moments = get_state_dict(model, optimizer)
            held = {"model": _copied(weights), "optimizer": _copied(moments)}
            with _alone_is_fine():
                future = dcp.async_save(held, storage_writer=dcp.FileSystemWriter(part), process_group=self._group)
        except ERRORS as error:
            raise self._failed(part, error) from error
        self._pending = future, part

    def finish(self) -> None:
        """Wait until the checkpoint under way is whole, and delete all but the newest ones.

        Raises:
            OSError: it could not be written; those that are there stay.
        """
        if self._pending is None:
            return
        (future, part), self._pending = self._pending, None
        try:
            future.result()
        except ERRORS as error:
            raise self._failed(part, error) from error
        path = part.with_suffix("")
        if self.world.first:
            _sync(part)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(part, path)
            _sync(self.folder)
            for old in self._all()[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
        self.world.barrier()
        self.saved = path

    def _all(self) -> list[Path]:
        found = [p for p in self.folder.iterdir() if NAME.fullmatch(p.name)] if self.folder.is_dir() else []
        return sorted(found, key=lambda path: int(path.name.split("-")[1]))

    def _failed(self, part: Path, error: BaseException) -> OSError:
        shutil.rmtree(part, ignore_errors=True)
        kept = "nothing was saved before" if self.saved is None else f"the last checkpoint is {self.saved}"
        return OSError(f"could not write the checkpoint {part.with_suffix('')}: {_why(error)}; {kept}")


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Hear nothing of a single process, which torch warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to (save|load) in a single process")
        yield


def _why(error: BaseException) -> str:
    """Return the first error of any process, in one line."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))[0]
        return f"{type(first).__name__}: {first}"
    return str(error) or type(error).__name__


def _copied(value: Any) -> Any:
    """Return a state with copies of its tensors: torch copies those on a device, and trains on with those of a CPU."""
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    return value.detach().clone() if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _sync(folder: Path) -> None:
    """Make the names in a folder, and the bytes of its files, last through a power cut."""
    for file in [*folder.iterdir(), folder] if folder.suffix == ".part" else [folder]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
