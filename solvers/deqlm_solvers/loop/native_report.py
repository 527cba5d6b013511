"""The outcome of a compiled solve, as `Solution` asks for it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Report"]

_TOLD = {
    "residual": (0, torch.float64, 1),
    "relative": (8, torch.float64, 1),
    "steps": (16, torch.int64, 1),
    "status": (40, torch.int8, 1),
    "first": (24, torch.float64, 2),
    "runaway": (41, torch.bool, 1),
}
"""What `finish` of step.cpp fills in, in the order of its arguments: where it begins, in bytes times rows, its dtype,
and numbers a row. What is large lies before what is small, so that all are aligned."""
_ROW_BYTES = 42


class Report:
    """What the library tells of all rows at the end, in one piece of memory, cut up when somebody asks.

    Args:
        rows: B.
        budget: nothing is tested.

    Attributes:
        pointers: where the library writes, in the order of ``finish`` of step.cpp.
        worst: largest status of a row, as a number.
    """

    def __init__(self, rows: int, budget: bool) -> None:
        self.rows, self.budget = rows, budget
        self.held = torch.empty(_ROW_BYTES * rows, dtype=torch.uint8, device=torch.device("cpu"))
        at = self.held.data_ptr()
        self.pointers = [at + start * rows for start, _, _ in _TOLD.values()]
        self.worst = 0

    def field(self, name: str) -> Tensor | None:
        """Return `Solution`'s field of rows, in memory of its own: torch.save refuses a storage of two dtypes."""
        if self.budget and name in ("first", "runaway"):
            return None
        start, dtype, count = _TOLD[name]
        cut = self.held[start * self.rows : (start + dtype.itemsize * count) * self.rows].view(dtype).clone()
        return cut.view(2, self.rows) if count == 2 else cut
