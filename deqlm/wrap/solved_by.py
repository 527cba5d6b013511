"""How a solved point was found, for the gradient method that connects it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqlm_solvers import Layout, Solve

__all__ = ["SolvedBy"]


@dataclass(frozen=True, eq=False)
class SolvedBy:
    """The forward solve as a gradient method sees it.

    Attributes:
        solve: solver and stop.
        layout: what rows stand for.
        inverse: what the evaluations tell of (J - I)^-1: (q, p), (B, M, N) each, of an estimate -I + sum of p q^T; None
            where nobody looked.
    """

    solve: Solve
    layout: Layout
    inverse: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Tensor) -> SolvedBy:
        """Return the same of some rows (K,), int64."""
        inverse = self.inverse
        if inverse is not None:
            inverse = inverse[0].index_select(0, rows), inverse[1].index_select(0, rows)
        return SolvedBy(self.solve, self.layout.select(rows), inverse)
