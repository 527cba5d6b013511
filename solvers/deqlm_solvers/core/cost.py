"""What a solve spent, and the one count of the calls of a map."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost", "Count"]


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


class Count:
    """Calls of a map so far, and rows and tokens summed over them.

    A map that holds one as its attribute ``count`` counts its calls itself, and maps that are made of it (on fewer
    rows, say) share it; everybody else reads.

    Examples:
        >>> count = Count()
        >>> count.add(rows=2, tokens=16)
        >>> count.cost()
        Cost(evaluations=1, row_evaluations=2, token_evaluations=16, vjps=0, jvps=0)
    """

    calls = 0
    rows = 0
    tokens = 0

    def add(self, rows: int, tokens: int = 0) -> None:
        """Count one call."""
        self.calls += 1
        self.rows += rows
        self.tokens += tokens

    def cost(self) -> Cost:
        """Return what was counted."""
        return Cost(self.calls, self.rows, self.tokens)
