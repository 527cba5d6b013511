"""Configurations and weights from files and folders, read without running code from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from deqlm_solvers.core.checks import require

__all__ = ["FLOATS", "INDEXES", "Source", "common_dtype", "fill", "read_config", "read_tensors", "some", "weight_map"]

Source = str | Path | Mapping[str, Any]
"""A mapping, or a path to a file or a folder."""

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What weights may be; others are quantised, and mean nothing without their scales."""
SHOWN = 6
"""Tensors that a message names, of each kind."""


def read_config(source: Source) -> dict[str, Any]:
    """Return a configuration as a new dict.

    Args:
        source: a mapping, a JSON file, or a folder with ``config.json``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not a JSON object.

    Examples:
        >>> read_config({"model_type": "implicit_mamba2"})
        {'model_type': 'implicit_mamba2'}
    """
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration at {path}")
    return _json(path)


def read_tensors(source: Source) -> dict[str, Tensor] | None:
    """Return tensors by name, on the CPU; None for a folder that holds no weights.

    In a folder, ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards with an index, come first; else its
    only file with one of the endings .safetensors, .bin, .pt or .pth. All but safetensors are read by ``torch.load``
    with ``weights_only=True``, which refuses pickled objects other than tensors.

    Args:
        source: a mapping of tensors, a file, or a folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged, holds other things than tensors, or a folder with several candidates.
    """
    if isinstance(source, Mapping):
        return _only_tensors(source, "state_dict")
    path = Path(source)
    if path.is_file():
        return _read(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there are no weights at {path}")
    for name in INDEXES:
        if (path / name).is_file():
            return _shards(path / name)
    for name in WHOLE:
        if (path / name).is_file():
            return _read(path / name)
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    names = [p.name for p in found]
    require(len(found) < 2, f"the files of weights in {path}", names, "one, or named as transformers names them")
    return _read(found[0]) if found else None


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the narrowest dtype that holds all floating-point tensors without loss; torch's default if there are none.

    Examples:
        >>> common_dtype([torch.zeros(2, dtype=torch.bfloat16), torch.zeros(1)])
        torch.float32
    """
    dtypes = {t.dtype for t in tensors if t.dtype in FLOATS}
    if not dtypes:
        return torch.get_default_dtype()
    first, *rest = dtypes
    for dtype in rest:
        first = torch.promote_types(first, dtype)
    return first


@torch.no_grad()
def fill(model: nn.Module, given: Mapping[str, Tensor], theirs: Callable[[str], str], what: str) -> None:
    """Copy every tensor of ``given`` into ``model``, all or none.

    Args:
        model: its state_dict is filled.
        given: by their names.
        theirs: the name that they give to an entry of the model's state_dict; tied entries may share one.
        what: of what these are the tensors, for messages.

    Raises:
        ValueError: tensors that are missing, not expected, of another shape or quantised; the message names them.
    """
    own: dict[str, Tensor] = dict(model.state_dict())
    wanted = {theirs(name): t.shape for name, t in own.items()}
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name].shape != shape
    ]
    odd = {name: t for name, t in given.items() if t.dtype not in FLOATS}
    integers = [f"{name} ({t.dtype})" for name, t in odd.items() if not t.is_floating_point()]
    small = [f"{name} ({t.dtype})" for name, t in odd.items() if t.is_floating_point()]
    kinds = {"missing": missing, "not expected": extra, "of another shape": shapes}
    kinds |= {"not floating-point": integers, "quantised": small}
    wrong = "; ".join(f"{kind}: {some(names)}" for kind, names in kinds.items() if names)
    if wrong:
        raise ValueError(f"the tensors are not those of {what}. {wrong}")
    for name, tensor in own.items():
        tensor.copy_(given[theirs(name)])


def weight_map(index: Path) -> dict[str, str]:
    """Return which file of its folder holds each tensor, as an index of shards says.

    Args:
        index: such as ``model.safetensors.index.json``.

    Raises:
        ValueError: it is no such index, or names a file of another folder.
    """
    places = _json(index).get("weight_map")
    ok = isinstance(places, dict) and bool(places) and all(isinstance(name, str) for name in places.values())
    require(ok, f"weight_map in {index}", type(places).__name__, "tensors and the names of their files")
    assert isinstance(places, dict)
    for name in sorted(set(places.values())):
        plain = name not in ("", ".", "..") and Path(name).name == PureWindowsPath(name).name == name
        require(plain, f"a file in {index}", name, "in the same folder")
    return places


def some(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(), object_hook=_special_float)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    require(isinstance(data, dict), f"the content of {path}", type(data).__name__, "a JSON object")
    return data


def _special_float(data: dict[str, Any]) -> Any:
    # how transformers writes infinity and NaN
    return float(data["__float__"]) if data.keys() == {"__float__"} else data


def _shards(index: Path) -> dict[str, Tensor]:
    places = weight_map(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        tensors |= _read(index.parent / name)
    lacking = [name for name in places if name not in tensors]
    require(not lacking, f"the tensors in the files of {index}", f"none for {some(lacking)}", "those of its weight_map")
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # both readers raise errors of many types on damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read: it is damaged, or holds pickled objects, which are refused because loading them "
            f"runs code ({reason})"
        ) from error
    require(isinstance(data, Mapping), f"the content of {path}", type(data).__name__, "tensors by name")
    return _only_tensors(data, str(path))


def _only_tensors(data: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    others = [f"{key}: {type(value).__name__}" for key, value in data.items() if not isinstance(value, Tensor)]
    require(not others, f"the values of {where}", some(others), "tensors; pass the inner mapping if there is one")
    return dict(data)
