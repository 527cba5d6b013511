"""What a folder of weights must not be: damaged, another model's, or a program."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError

__all__ = ["explain_bad_files", "refuse_other_weights"]


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


def refuse_other_weights(name: str, info: Mapping[str, Any], *, resize: bool) -> None:
    """Raise if the files hold the weights of another model.

    Args:
        name: of the class that loads.
        info: ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``, as transformers tells them.
        resize: take weights of another shape for missing ones.

    Raises:
        ValueError: weights are missing while others are unknown, or have another shape.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing and unexpected:
        raise ValueError(
            f"these are weights of another model than {name}: {len(missing)} are missing, such as {missing[0]!r}, and "
            f"{len(unexpected)} are unknown, such as {unexpected[0]!r}"
        )
    shapes = sorted(info["mismatched_keys"])
    if shapes and not resize:
        key, *sizes = shapes[0]
        told, wanted = (tuple(size) for size in sizes)
        raise ValueError(
            f"these are weights of another size than the configuration's: {key!r} has shape {told}, not {wanted}; "
            "ignore_mismatched_sizes=True makes new ones"
        )
