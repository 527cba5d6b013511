"""What a call of a language model is given, checked by name, value and rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deqlm.wrap.levels import bare, outside, transformed
from deqlm_solvers.core.at_hand import at_hand
from deqlm_solvers.core.checks import require, whole

__all__ = ["check_count", "check_mask", "embedded", "require_tensor", "targets", "tokens", "vocabulary", "wanted"]


def tokens(ids: Any, size: int) -> Tensor:
    """Return ids of tokens as int64.

    Args:
        ids: (B, L) of any whole-number dtype, L >= 1.
        size: rows of the embedding table.

    Raises:
        TypeError: no tensor.
        ValueError: another dtype or shape, no token, or on a CPU a value out of range, which an accelerator's own
            kernels refuse: to look there would be to wait.

    Examples:
        >>> tokens(torch.tensor([[3, 1]], dtype=torch.uint8), 5).dtype
        torch.int64
    """
    require_tensor("ids", ids)
    ok = ids.dim() == 2 and _is_whole(ids)
    require(ok, "ids", f"{ids.dtype} {tuple(ids.shape)}", "whole numbers of shape (B, L)")
    require(ids.shape[1] >= 1, "the length of ids", ids.shape[1], ">= 1")
    ids = ids.long()
    _require_range("ids", ids, size)
    return ids


def embedded(embeddings: Any, width: int) -> Tensor:
    """Return embeddings, given in place of ids.

    Args:
        embeddings: (B, L, D), floating point, L >= 1.
        width: D.

    Raises:
        TypeError: no tensor.
        ValueError: another dtype or shape.
    """
    require_tensor("embeddings", embeddings, values=False)
    ok = embeddings.dim() == 3 and embeddings.shape[2] == width and embeddings.shape[1] >= 1
    require(ok, "embeddings", tuple(embeddings.shape), f"of shape (B, L, {width}) with L >= 1")
    require(embeddings.is_floating_point(), "embeddings", embeddings.dtype, "floating point")
    return embeddings


def check_mask(mask: Any, batch: int, length: int) -> None:
    """Raise unless ``mask`` is bool of shape (B, L).

    Raises:
        TypeError: no tensor.
        ValueError: another dtype or shape.
    """
    require_tensor("mask", mask)
    ok = mask.shape == (batch, length) and mask.dtype == torch.bool
    require(ok, "mask", f"{mask.dtype} {tuple(mask.shape)}", f"bool of shape {(batch, length)}")


def targets(labels: Any, shape: torch.Size, size: int, *, shifted: bool) -> Tensor:
    """Return labels as int64.

    Args:
        labels: (B, L) of any whole-number dtype; -100 does not count.
        shape: (B, L) of the logits.
        size: of the vocabulary.
        shifted: whether the first label of a row is left away, so that there must be two.

    Raises:
        TypeError: no tensor.
        ValueError: another dtype or shape, a single label that is left away, or on a CPU a value out of range.
    """
    require_tensor("labels", labels)
    require(labels.shape == shape, "labels", tuple(labels.shape), f"of shape {tuple(shape)}")
    require(_is_whole(labels), "labels", labels.dtype, "whole numbers")
    if shifted:
        require(labels.shape[1] > 1, "the length of shifted labels", labels.shape[1], "> 1: the first is not used")
    labels = labels.long()
    _require_range("labels", labels, size, also="-100 or ")
    return labels


def _require_range(name: str, values: Tensor, size: int, also: str = "") -> None:
    """Raise unless whole numbers that are at hand are in [0, size), or -100 where ``also`` says so."""
    if not torch.compiler.is_dynamo_compiling() and transformed():
        with outside():
            return _require_range(name, bare(values), size, also)
    if not at_hand(values):
        return None
    counted = values[values != -100] if also else values
    if counted.numel():
        low, high = torch.stack(torch.aminmax(counted)).tolist()
        require(low >= 0 and high < size, name, f"{low} to {high}", f"{also}from 0 to {size - 1}")
    return None


def check_count(count: Any) -> None:
    """Raise unless ``count`` may divide a loss: a number > 0, or a tensor of one number, which is not read.

    Raises:
        ValueError: it may not.
    """
    if isinstance(count, Tensor):
        require(count.numel() == 1, "label_count", tuple(count.shape), "one number")
        return
    ok = isinstance(count, int | float) and not isinstance(count, bool) and count > 0
    require(ok, "label_count", count, "a number > 0")


def wanted(state: Tensor, keep: Any) -> Tensor:
    """Return the tokens of ``state`` (B, L, D) whose logits are wanted.

    Args:
        state: what the head sees.
        keep: so many last ones, 0 for all, or an index (K,), whole numbers from -L to L - 1 or a bool mask (L,).

    Raises:
        ValueError: neither, or on a CPU an index out of range.
    """
    if not isinstance(keep, Tensor):
        whole("logits_to_keep", keep, 0)
        return state[:, -keep:] if keep else state
    ok = keep.dim() == 1 and (_is_whole(keep) or (keep.dtype == torch.bool and len(keep) == state.shape[1]))
    require(ok, "logits_to_keep", f"{keep.dtype} {tuple(keep.shape)}", "whole numbers of shape (K,), or one number")
    if keep.dtype == torch.bool:
        return state[:, keep]
    length = state.shape[1]
    if at_hand(keep) and not bool(((keep >= -length) & (keep < length)).all()):
        require(False, "logits_to_keep", keep.tolist(), f"from {-length} to {length - 1}")
    return state[:, keep.long()]


def vocabulary(layer: Any) -> int:
    """Return how many tokens a table or a head knows: its rows, also those of an adapter's or a quantised one.

    Examples:
        >>> vocabulary(torch.nn.Embedding(5, 3)), vocabulary(torch.nn.Linear(3, 7))
        (5, 7)
    """
    if isinstance(layer.weight, Tensor):
        return layer.weight.shape[0]
    return layer.num_embeddings if hasattr(layer, "num_embeddings") else layer.out_features


def require_tensor(name: str, value: Any, *, values: bool = True) -> None:
    """Raise unless ``value`` is a dense tensor.

    Args:
        name: of the argument.
        value: what was given.
        values: whether its numbers are read, so that it may not lie on the device "meta".

    Raises:
        TypeError: no tensor.
        ValueError: a sparse or nested one, or one without numbers.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    dense = value.layout is torch.strided and not value.is_nested
    require(dense, name, "nested" if value.is_nested else value.layout, "a dense tensor")
    require(not (values and value.is_meta), name, "a tensor on the device meta", "a tensor that holds numbers")


def _is_whole(t: Tensor) -> bool:
    return not (t.is_floating_point() or t.is_complex() or t.is_quantized or t.dtype == torch.bool)
