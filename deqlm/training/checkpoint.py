"""Checkpoints of which there is always a whole one: written beside the old, checked when read."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deqlm.training.experiment import differences
from deqlm_solvers.core.checks import require, whole

__all__ = ["CheckpointError", "checkpoints", "load_checkpoint", "save_checkpoint", "write_atomically"]

MAGIC = b"deqlm-checkpoint-1"
VERSION = re.compile(rb"deqlm-checkpoint-(\d{1,9}) ")
HEADER = re.compile(rb"deqlm-checkpoint-1 ([0-9a-f]{64}) (\d{20})\n")
HEADER_SIZE = len(MAGIC) + 1 + 64 + 1 + 20 + 1
NAME = re.compile(r"step-(\d{8,})\.ckpt")
KEYS = ("step", "experiment", "state")

# exactly these, and no subclasses such as the numbers of numpy, can be read back without running code
PLAIN = (bool, int, float, str, type(None))
MAPPINGS = (dict, OrderedDict, Counter)
SEQUENCES = (list, tuple, torch.Size)


class CheckpointError(RuntimeError):
    """A file that is no whole checkpoint, or one of another experiment."""


def checkpoints(folder: Path | str) -> list[Path]:
    """Return the checkpoints of a folder, the newest last; none where there is no such folder.

    Examples:
        >>> save_checkpoint("run", 5, {"weights": torch.ones(2)}).name
        'step-00000005.ckpt'
        >>> [path.name for path in checkpoints("run")]
        ['step-00000005.ckpt']
    """
    folder = Path(folder)
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=_step)


def save_checkpoint(
    folder: Path | str,
    step: int,
    state: Mapping[str, Any],
    *,
    experiment: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write ``state`` into ``folder`` and delete all but the newest ``keep`` checkpoints.

    The bytes go to another file of the same folder and reach the disk before that file takes its name, so a full disk,
    a kill or a power cut at any moment leaves the checkpoints that were there before. The file is first built in
    memory, where it takes as much as ``state`` does.

    Args:
        folder: made if it is missing; of one training only.
        step: optimizer steps that were taken, in the name of the file.
        state: tensors, numbers, text and None in dicts with keys of text or whole numbers, lists and tuples. Where a
            tensor is a part of a larger one, only the part is written.
        experiment: JSON data that `load_checkpoint` compares.
        keep: newest checkpoints that stay, this one included, >= 1.

    Returns:
        The file.

    Raises:
        TypeError: a value that could not be read back safely, with its place, such as a number of numpy.
        ValueError: a step, a number of checkpoints or a key that breaks its rule, or a state that holds itself.
        OSError: it could not be written; earlier checkpoints are untouched.
    """
    whole("step", step, 0, None)
    whole("keep", keep, 1)
    content = {"step": step, "experiment": _json(experiment), "state": dict(state)}
    try:
        _check_plain(content, "")
    except RecursionError:
        raise ValueError("state must be finite, and holds itself, or is nested too deeply") from None
    payload = io.BytesIO()
    torch.save(_alone(content), payload)
    data = payload.getbuffer()
    header = b"%b %b %020d\n" % (MAGIC, hashlib.sha256(data).hexdigest().encode(), len(data))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("step-*.ckpt.part"):
        stale.unlink()
    path = folder / f"step-{step:08d}.ckpt"
    write_atomically(path, header, data)
    for old in checkpoints(folder)[:-keep]:
        # a training that went back to an earlier step must not lose what it has just saved
        if old != path:
            old.unlink()
    return path


def load_checkpoint(path: Path | str, *, experiment: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Read what `save_checkpoint` wrote, tensors on the CPU; nothing in the file is executed.

    Args:
        path: the file.
        experiment: None, or what the file must have been saved with.

    Returns:
        Step and state.

    Raises:
        CheckpointError: the file is truncated, changed, of another kind, or of another experiment; the message names
            the fields that differ.
        FileNotFoundError: there is none.

    Examples:
        >>> path = save_checkpoint("run", 5, {"weights": torch.ones(2)}, experiment={"lr": 0.1})
        >>> load_checkpoint(path, experiment={"lr": 0.1})
        (5, {'weights': tensor([1., 1.])})
        >>> load_checkpoint(path, experiment={"lr": 0.2})
        Traceback (most recent call last):
        deqlm.training.checkpoint.CheckpointError: run/step-00000005.ckpt belongs to another experiment: lr is 0.1...
    """
    path = Path(path)
    data = path.read_bytes()
    header = HEADER.fullmatch(data[:HEADER_SIZE])
    if header is None:
        raise CheckpointError(f"{path} {_headless(data)}{_others(path)}")
    digest, size = header[1].decode(), int(header[2])
    payload = memoryview(data)[HEADER_SIZE:]
    if len(payload) != size:
        kind = "truncated" if len(payload) < size else "too long"
        raise CheckpointError(f"{path} is {kind}: {len(payload)} bytes of {size}{_others(path)}")
    if hashlib.sha256(payload).hexdigest() != digest:
        raise CheckpointError(f"{path} was changed after it had been written: its checksum differs{_others(path)}")
    try:
        step, saved, state = _content(payload)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} holds something else than a checkpoint of deqlm: {error}{_others(path)}"
        ) from error
    if experiment is not None and (different := differences(saved, experiment)):
        raise CheckpointError(f"{path} belongs to another experiment: {different}")
    return step, state


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that at any moment either the old or the whole new one is there, also after a power cut.

    Args:
        path: in a folder that exists.
        parts: the bytes, one part after another.

    Raises:
        OSError: it could not be written; what was at ``path`` is untouched.

    Examples:
        >>> write_atomically(Path("note.txt"), b"one ", b"two")
        >>> Path("note.txt").read_text()
        'one two'
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            for data in parts:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        why = error.strerror or str(error)
        raise OSError(error.errno, f"could not write {path}: {why}; what was saved before is untouched") from error
    if hasattr(os, "O_DIRECTORY"):  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _step(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _headless(data: bytes) -> str:
    """Return what is wrong with bytes that do not start as ours do."""
    version = VERSION.match(data)
    if version is not None and version[1] != b"1":
        return f"is a checkpoint of version {version[1].decode()}; this deqlm reads version 1"
    return "is truncated" if data.startswith(MAGIC) or MAGIC.startswith(data) else "is no checkpoint of deqlm"


def _content(payload: memoryview) -> tuple[int, Any, dict[str, Any]]:
    """Return step, experiment and state of bytes that somebody sealed, whatever they are.

    Raises:
        CheckpointError: they are not what `save_checkpoint` seals.
    """
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message goes on to say how to run the code
        raise CheckpointError("other objects than tensors and plain data, or damaged ones") from error
    except Exception as error:  # of many types
        raise CheckpointError(str(error).strip().split("\n")[0] or type(error).__name__) from error
    if type(content) is not dict or set(content) != set(KEYS):
        found = sorted(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise CheckpointError(f"it must be {', '.join(KEYS)}, got {found}")
    step, experiment, state = (content[key] for key in KEYS)
    try:
        whole("step", step, 0, None)
        require(type(state) is dict, "state", type(state).__name__, "a dict")
        _json(experiment)
        _check_plain(state, "")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(str(error)) from error
    return step, experiment, state


def _json(experiment: Any) -> Any:
    """Return ``experiment``; raise ``TypeError`` unless it is None or a mapping of JSON data."""
    if experiment is not None and not isinstance(experiment, Mapping):
        raise TypeError(f"experiment must be a mapping of JSON data or None, got {type(experiment).__name__}")
    try:
        json.dumps(experiment)
    except (TypeError, ValueError) as error:
        raise TypeError(f"experiment must be JSON data: {error}") from error
    return experiment


def _others(path: Path) -> str:
    left = [other.name for other in checkpoints(path.parent) if other != path]
    return f"; other checkpoints here: {', '.join(reversed(left))}" if left else ""


def _check_plain(value: Any, place: str) -> None:
    kind = type(value)
    if kind in MAPPINGS:
        for key, part in value.items():
            ok = type(key) in (str, int, bool)
            require(ok, f"keys of {place or 'state'}", key, "text or whole numbers")
            _check_plain(part, f"{place}.{key}" if place else str(key))
    elif kind in SEQUENCES:
        for index, part in enumerate(value):
            _check_plain(part, f"{place}[{index}]")
    elif kind not in PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(f"a checkpoint holds tensors and plain data, got {kind.__name__} at {place}")


def _alone(value: Any) -> Any:
    """Return ``value`` with a copy of each tensor whose storage holds more than it: the whole of it would be saved."""
    if isinstance(value, MAPPINGS):
        copied = copy.copy(value)  # with what a state_dict carries as an attribute
        for key, part in value.items():
            copied[key] = _alone(part)
        return copied
    if isinstance(value, list | tuple):
        return value if isinstance(value, torch.Size) else type(value)(map(_alone, value))
    if isinstance(value, torch.Tensor) and _is_part(value):
        part = value.detach().clone()
        return torch.nn.Parameter(part, value.requires_grad) if isinstance(value, torch.nn.Parameter) else part
    return value


def _is_part(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    return plain and tensor.untyped_storage().nbytes() > tensor.numel() * tensor.itemsize
