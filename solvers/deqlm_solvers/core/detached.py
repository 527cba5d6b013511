"""Values without their graphs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["detached"]


def detached(value: Any) -> Any:
    """Return a state, a tensor or a tree of any kind, with every tensor in it detached; the rest as it is.

    Examples:
        >>> import torch
        >>> w = torch.ones(2, requires_grad=True)
        >>> detached({"h": (2 * w, 3)})
        {'h': (tensor([2., 2.]), 3)}
    """
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple):
        parts = [detached(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, list):
        return type(value)(detached(part) for part in value)
    if isinstance(value, Mapping):
        made: Any = copy.copy(value)
        for key, part in value.items():
            made[key] = detached(part)
        return made
    if not hasattr(value, "__dict__") or isinstance(value, type):
        return value
    made = copy.copy(value)
    for name, part in vars(value).items():
        object.__setattr__(made, name, detached(part))
    return made
