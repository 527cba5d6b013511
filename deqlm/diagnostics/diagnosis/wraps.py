"""What a map can be wrapped in: a copy of its argument, noise that is held, a norm of its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqlm.wrap.trees import map_tensors, tree_add, zeros_like_tree

__all__ = ["NORMS", "Norm", "Wrap", "norm_named", "wrapped"]

Norm = Literal["group_norm", "layer_norm", "rms_norm"]
NORMS: tuple[Norm, ...] = get_args(Norm)
Wrap = Literal["clone"] | Norm


class Cloned(nn.Module):
    """A layer that gets a copy of its state, for one that writes into it."""

    def __init__(self, layer: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the layer at a copy of ``z``."""
        return self.layer(tree_add(z, zeros_like_tree(z)), *args, **kwargs)


class Normed(nn.Module):
    """A layer whose output is normalised, tensor by tensor, as by the named module with its first weights."""

    def __init__(self, layer: Callable[..., Any], norm: Norm) -> None:
        super().__init__()
        self.layer = layer
        self.norm: Norm = norm

    def forward(self, z: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the layer and normalise what it returns."""
        return map_tensors(self._normalise, self.layer(z, *args, **kwargs))

    def _normalise(self, y: Tensor) -> Tensor:
        if self.norm == "group_norm":
            return F.group_norm(y, 1)
        shape = _normed_shape(y.shape)
        return F.layer_norm(y, shape) if self.norm == "layer_norm" else F.rms_norm(y, shape)


def wrapped(f: Callable[..., Any], wrap: Wrap | None) -> Callable[..., Any]:
    """Return f in its wrapping, a module in train mode or not as f is."""
    if wrap is None:
        return f
    made = Cloned(f) if wrap == "clone" else Normed(f, wrap)
    made.training = getattr(f, "training", True)
    return made


def norm_named(norm: Norm, shape: torch.Size) -> str:
    """Return the module that normalises a state of ``shape``, as a user would write it."""
    if norm == "group_norm":
        return f"nn.GroupNorm(1, {shape[1]})"
    over = _normed_shape(shape)
    name = "LayerNorm" if norm == "layer_norm" else "RMSNorm"
    return f"nn.{name}({over[0] if len(over) == 1 else tuple(over)})"


def _normed_shape(shape: torch.Size) -> list[int]:
    """Return the last dimension, or all but the first where the last alone is too short to have a mean and a spread."""
    return list(shape[-1:] if shape[-1] > 2 or len(shape) == 1 else shape[1:])
