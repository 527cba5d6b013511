"""When the host may look at numbers for nothing."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_hand"]


def at_hand(t: Tensor) -> bool:
    """Say whether the host has the numbers of ``t`` without waiting: on a CPU, where no dispatch mode stands between.

    Elsewhere a look waits for all that was asked of the device before, and ends the capture of a graph. So what is
    checked to explain a mistake is checked where this holds; kernels of the device refuse an index out of range too.

    Examples:
        >>> at_hand(torch.zeros(2)), at_hand(torch.zeros(2, device="meta"))
        (True, False)
    """
    return t.device.type == "cpu" and not torch._C._len_torch_dispatch_stack()
