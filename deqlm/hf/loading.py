"""What a folder of weights must not be: damaged, another model's, or a program."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deqlm.hf.checkpoints import FLOATS, INDEXES, some, weight_map
from deqlm.layers.weight_norm import Normed
from deqlm_solvers.core.checks import require

__all__ = ["WeightFiles", "explain_bad_files", "refuse_other_weights", "refuse_to_leave_out"]

WHOLE = ("model.safetensors", INDEXES[0], "pytorch_model.bin", INDEXES[1])
"""Files of weights in the order in which transformers looks for them."""


class WeightFiles:
    """The files of weights in a folder, as far as one can look into them without reading them.

    Args:
        source: what is loaded; only a folder on this machine is looked into.
        options: of ``from_pretrained``.
    """

    def __init__(self, source: Any, options: Mapping[str, Any]) -> None:
        self.source = source
        self.given: Mapping[str, Tensor] | None = options.get("state_dict")
        self.files: list[Path] = []
        self.promised: dict[str, str] = {}
        folder = None if source is None else Path(source, options.get("subfolder") or "")
        if self.given is not None or folder is None or not folder.is_dir():
            return
        safe, variant = options.get("use_safetensors"), options.get("variant")
        wanted = {None: WHOLE, True: WHOLE[:2], False: WHOLE[2:]}.get(safe, WHOLE)
        found = [file for name in wanted if (file := folder / _of_variant(name, variant)).is_file()]
        if found and found[0].suffix == ".json":
            self.promised = weight_map(found[0])
            self.files = [folder / name for name in sorted(set(self.promised.values()))]
        else:
            self.files = found[:1]

    def refuse_broken_promises(self) -> None:
        """Raise unless every tensor of an index is in its file.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: it lacks a tensor.
        """
        for file in self.files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing, which the index in its folder names")
        lacking = [name for name, place in self.promised.items() if name not in self._dtypes[place]]
        rule = "those of the index"
        require(not lacking, f"the tensors in the files of {self.source}", f"none for {some(lacking)}", rule)

    def refuse_quantised_state(self) -> None:
        """Raise ``ValueError`` if a tensor of the ``state_dict`` that was given is quantised, with its name."""
        self._refuse({name: t.dtype for name, t in (self.given or {}).items()})

    def refuse_quantised_files(self, ignored: Container[str]) -> None:
        """Raise ``ValueError`` if a tensor in the files is quantised, with its name.

        Args:
            ignored: names of tensors that the model does not take.
        """
        found = {name: kind for kept in self._dtypes.values() for name, kind in kept.items() if name not in ignored}
        self._refuse(found)

    def _refuse(self, kinds: Mapping[str, Any]) -> None:
        odd = [f"{name} ({kind})" for name, kind in kinds.items() if kind not in FLOATS]
        if odd:
            raise ValueError(
                f"the weights at {self.source} are quantised, or no floating-point numbers: {some(odd)}; convert them "
                "to float16, bfloat16 or float32 first, with their scales"
            )

    @functools.cached_property
    def _dtypes(self) -> dict[str, dict[str, Any]]:
        """Dtype of each tensor of each file; that of safetensors in its own words where torch has no such floats."""
        return {file.name: _dtypes_in(file) for file in self.files}


def _of_variant(name: str, variant: str | None) -> str:
    stem, _, ending = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{ending}"


def _dtypes_in(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return {name: SAFE.get(kind := opened.get_slice(name).get_dtype(), kind) for name in opened.keys()}  # noqa: SIM118
    data = torch.load(file, map_location="meta", weights_only=True)
    return {name: t.dtype for name, t in data.items() if isinstance(t, Tensor)}


SAFE = dict(zip(("F16", "BF16", "F32", "F64"), FLOATS, strict=True))


@contextmanager
def explain_bad_files(source: Any) -> Iterator[None]:
    """Turn the errors of readers of files into a ``ValueError`` that names the place.

    Args:
        source: what is loaded.
    """
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"the weights at {source} are damaged: {error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"the weights at {source} hold other things than tensors, or are damaged; pickled objects could run code "
            "and are never loaded"
        ) from error
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the weights at {source} are or shall be quantised by {error.name}: pip install {error.name}"
        ) from error


PLAIN = (".weight",)
NORMED = (".weight_g", ".weight_v", ".parametrizations.weight.original0", ".parametrizations.weight.original1")
"""By our names, and by those that transformers gives them while it reads."""


def _owners(keys: list[str], endings: tuple[str, ...]) -> set[str]:
    return {key.removesuffix(ending) for key in keys for ending in endings if key.endswith(ending)}


def _refuse_folding(missing: list[str], unexpected: list[str]) -> None:
    """Raise if weights are there, but normalised where the configuration has plain ones, or the other way round."""
    for has, lacks, normed in ((unexpected, missing, False), (missing, unexpected, True)):
        if both := _owners(has, PLAIN) & _owners(lacks, NORMED):
            told = ("normalised", "plain") if normed else ("plain, as folded weights are", "normalised ones")
            raise ValueError(
                f"the weights of {some(sorted(both))} are {told[0]}, and weight_norm={not normed} in the configuration "
                f"means {told[1]}: load with weight_norm={normed}"
            )


def refuse_to_leave_out(model: nn.Module) -> None:
    """Raise ``ValueError`` if a model that was quantised on loading has normalised weights, which were left out."""
    names = [name for name, part in model.named_modules() if isinstance(part, Normed)]
    if names:
        raise ValueError(
            f"weights that are normalised in every call cannot be quantised: {some(names)}; load the model without "
            "quantization_config, and save it after model.fold_weight_norm()"
        )


def refuse_other_weights(name: str, info: Mapping[str, Any], *, resize: bool, allow_partial: bool) -> None:
    """Raise if the files hold the weights of another model.

    Args:
        name: of the class that loads.
        info: ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``, as transformers tells them.
        resize: take weights of another shape for missing ones.
        allow_partial: do not mind weights that are missing while others are unknown.

    Raises:
        ValueError: weights are missing while others are unknown, are normalised on one side only, or have another
            shape.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    _refuse_folding(missing, unexpected)
    if missing and unexpected and not allow_partial:
        raise ValueError(
            f"these are weights of another model than {name}: {len(missing)} are missing, such as {missing[0]!r}, and "
            f"{len(unexpected)} are unknown, such as {unexpected[0]!r}; allow_partial=True takes what both have"
        )
    shapes = sorted(info["mismatched_keys"])
    if shapes and not resize:
        key, *sizes = shapes[0]
        told, wanted = (tuple(size) for size in sizes)
        raise ValueError(
            f"these are weights of another size than the configuration's: {key!r} has shape {told}, not {wanted}; "
            "ignore_mismatched_sizes=True makes new ones"
        )
