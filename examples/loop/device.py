"""Where a training runs, checked before anything is made for it."""

from __future__ import annotations

import torch

__all__ = ["usable"]


def usable(name: str) -> str:
    """Return the name of a device that this torch and this machine have.

    Args:
        name: such as "cpu", "cuda" or "cuda:1".

    Raises:
        ValueError: there is no such device here.

    Examples:
        >>> usable("cpu")
        'cpu'
    """
    try:
        torch.empty(1, device=name).sum().item()
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that torch finds here, got {name!r}: {reason}") from error
    return name
