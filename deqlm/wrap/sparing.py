"""What is connected to autograd where rows failed, by one process or by several in step."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from deqlm.wrap.cuts import healthy_source
from deqlm.wrap.rows import RowMap
from deqlm_solvers.core.processes import Processes

__all__ = ["spare"]


def spare(
    f: RowMap, z: Tensor, bad: Tensor | None, together: Processes | None
) -> tuple[RowMap, Tensor, Tensor | None] | None:
    """Return map and point for a graph that failed rows cannot spoil, and which row each row reads of what is per row.

    To find out which inputs are per row takes evaluations (`RowMap.without`). Processes that are in step all make those
    that one of them needs.

    Args:
        f: the map.
        z: the point, (B, N).
        bad: rows that failed, (B,) bool, one at least; None where none did.
        together: processes in step, or None.

    Returns:
        None where every row failed and nobody else waits; the row numbers are None where each reads itself.
    """
    if together is None:
        return (f, z, None) if bad is None else None if bool(bad.all()) else _without(f, z, bad)
    if not together.any(bad is not None, z.device):
        return f, z, None
    announce = partial(together.any, True, z.device)
    if bad is None:
        made = f, z, None
    elif bool(bad.all()):
        made = f.cleared(announce), torch.zeros_like(z), None
    else:
        made = _without(f, z, bad, announce)
    while together.any(False, z.device):
        f.again(z)
    return made


def _without(f: RowMap, z: Tensor, bad: Tensor, *announce: partial[bool]) -> tuple[RowMap, Tensor, Tensor]:
    source = healthy_source(bad)
    healthy = z.index_select(0, source)
    return f.without(bad, healthy, *announce), healthy, source
