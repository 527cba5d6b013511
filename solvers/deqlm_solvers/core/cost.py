"""What a solve spent."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost:
    """What a solve spent.

    Attributes:
        evaluations: calls of f, those that carry tangents or record a graph included.
        row_evaluations: rows summed over those calls.
        token_evaluations: token slots, padding included, summed over those rows; 0 where the state has no tokens.
        vjps: products with the transposed Jacobian (adjoint solves).
        jvps: products with the Jacobian; a dense one is N of them, one that the user computes is one.

    Examples:
        >>> Cost(evaluations=3, row_evaluations=6) + Cost(vjps=2)
        Cost(evaluations=3, row_evaluations=6, token_evaluations=0, vjps=2, jvps=0)
        >>> print(Cost(evaluations=3, row_evaluations=6, token_evaluations=96))
        3 evaluations of f on 6 rows, 96 tokens
    """

    evaluations: int = 0
    row_evaluations: int = 0
    token_evaluations: int = 0
    vjps: int = 0
    jvps: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.evaluations + other.evaluations,
            self.row_evaluations + other.row_evaluations,
            self.token_evaluations + other.token_evaluations,
            self.vjps + other.vjps,
            self.jvps + other.jvps,
        )

    def __str__(self) -> str:
        parts = []
        if self.evaluations:
            parts.append(f"{self.evaluations} evaluations of f on {self.row_evaluations} rows")
        counts = {"tokens": self.token_evaluations, "products with J": self.jvps, "with J^T": self.vjps}
        parts += [f"{count} {what}" for what, count in counts.items() if count]
        return ", ".join(parts) or "nothing"
