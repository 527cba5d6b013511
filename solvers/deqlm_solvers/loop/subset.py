"""Maps that can be evaluated on some of their rows, and the probe that finds out whether the answer is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from deqlm_solvers.core.agreement import rows_agree
from deqlm_solvers.core.solver import Map

__all__ = ["SubsetMap", "subset"]


@runtime_checkable
class SubsetMap(Protocol):
    """A map on rows (B, N) that can leave rows out."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z), (B, N)."""
        ...

    def narrow(self, rows: Tensor) -> Map | None:
        """Return the map on ``rows`` alone, (K, N) to (K, N), or None where it cannot be had.

        Args:
            rows: indices (K,), int64, ascending.
        """
        ...


def subset(
    f: Map, rows: Tensor, z: Tensor, fz: Tensor, evaluate: Callable[[Map, Tensor], Tensor] | None = None
) -> Map | None:
    """Return f on ``rows`` (K,) alone, or None where f offers no `SubsetMap.narrow` or mixes rows.

    The probe evaluates the narrow map once, at ``z[rows]``, and compares with what f made of these rows in the whole
    batch. A map that raises for fewer rows, because it captured a tensor of the whole batch, cannot be narrowed either.
    A map with an attribute ``apart`` is not probed where that is True, and has it set to True by a probe that agrees.

    Args:
        f: the map on all rows.
        rows: indices (K,), int64, ascending.
        z: a point, (B, N), dtype of the state.
        fz: f(z), likewise.
        evaluate: calls a map at a point, for callers that count; None just calls it.
    """
    if not isinstance(f, SubsetMap):
        return None
    narrow = f.narrow(rows)
    if narrow is None:
        return None
    if getattr(f, "apart", False):
        return narrow
    want = fz.index_select(0, rows)
    try:
        point = z.index_select(0, rows)
        got = narrow(point) if evaluate is None else evaluate(narrow, point)
    except Exception:  # an assertion of the user's, say: what cannot be asked stays in the batch
        return None
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return None
    if not bool(rows_agree(got, want).all()):
        return None
    if hasattr(f, "apart"):
        f.apart = True  # type: ignore[attr-defined]
    return narrow
