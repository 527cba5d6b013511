"""Which dtype a map computes in, and which one the algebra of a solve has."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HALF", "autocast_dtype", "evaluated_dtype", "inner_dtype", "rounding_slack"]

HALF = (torch.bfloat16, torch.float16)


def inner_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of iterates and algebra for a state of ``dtype``: at least float32."""
    return torch.float32 if dtype in HALF else dtype


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return the dtype of autocast on a type of device, None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def evaluated_dtype(z: Tensor) -> torch.dtype:
    """Return the dtype that a map of ``z`` computes in: that of autocast where it is on, else that of ``z``."""
    return autocast_dtype(z.device.type) or z.dtype


def rounding_slack(dtype: torch.dtype) -> float:
    """Return the share by which two evaluations of the same may differ, because kernels round by shape and place.

    What a probe compares (fewer rows, other neighbours, a longer sequence) is the same up to that.

    Examples:
        >>> rounding_slack(torch.float64) < rounding_slack(torch.float32) < rounding_slack(torch.bfloat16)
        True
    """
    return min(1e3 * torch.finfo(dtype).eps, 0.05)
