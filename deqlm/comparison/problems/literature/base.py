"""What a problem of the literature is: a function on rows in float64, its start, and its root where one is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from deqlm_solvers import Map
from deqlm_solvers.core.checks import require

__all__ = ["FORMS", "Form", "LiteratureProblem", "map_of", "row", "system"]

Form = Literal["z - F", "z + F", "f"]
"""How a problem becomes z = f(z)."""

FORMS: tuple[Form, ...] = ("z - F", "z + F", "f")


@dataclass(frozen=True, eq=False, kw_only=True)
class LiteratureProblem:
    """A published problem at one start.

    Attributes:
        name: lower-case words joined by ``_``; the dimension and the factor on the start stand at its end.
        source: where it is from, with its number there.
        function: F of the equation F(z) = 0, or f of z = f(z); (B, N) -> (B, N), in the dtype of its argument.
        is_map: ``function`` is f.
        start: z0, (1, N) float64.
        root: a root, (1, N) float64; None where none is known in closed form or to all digits.
        least: smallest ||F|| there is, > 0 where F has no root; 0 where it has one.

    Examples:
        >>> from deqlm.comparison.problems.literature import literature
        >>> wood = literature("wood")
        >>> wood.forms, wood.residual(wood.root).item()
        (('z - F', 'z + F'), 0.0)
    """

    name: str
    source: str
    function: Map
    is_map: bool
    start: Tensor
    root: Tensor | None = None
    least: float = 0.0

    @property
    def unknowns(self) -> int:
        """N."""
        return self.start.shape[1]

    @property
    def forms(self) -> tuple[Form, ...]:
        """The ways in which it is written as z = f(z): "f" as it is, or "z - F" and "z + F"."""
        return ("f",) if self.is_map else ("z - F", "z + F")

    @property
    def max_iter(self) -> int:
        """Evaluations that a solver may make: 500, or 300 dense Jacobians of N products, up to the 10,000 of scipy."""
        return max(500, min(10_000, 300 * (self.unknowns + 1)))

    def map(self, form: str) -> Map:
        """Return f of z = f(z), one of `forms`.

        Raises:
            ValueError: a form that this problem does not have.
        """
        require(form in self.forms, "form", form, f"one of {', '.join(self.forms)} for {self.name}")
        if form == "f":
            return self.function
        if form == "z - F":
            return lambda z: z - self.function(z)
        return lambda z: z + self.function(z)

    def system(self, z: Tensor) -> Tensor:
        """Return F(z), (B, N); z - f(z) where the problem is a map."""
        return z - self.function(z) if self.is_map else self.function(z)

    def residual(self, z: Tensor) -> Tensor:
        """Return ||F(z)||_2 per row, (B,) float64, infinite where it is not finite; no solver has a part in it."""
        with torch.no_grad():
            size = torch.linalg.vector_norm(self.system(z.detach().double()), dim=1)
        return size.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def scaled(self, factor: float) -> LiteratureProblem:
        """Return the problem from ``factor`` times its start; from ones times ``factor`` where that is zero."""
        start = torch.ones_like(self.start) if not self.start.any() else self.start
        return replace(self, name=f"{self.name}_x{factor:g}", start=factor * start)


def row(values: Sequence[float] | Tensor) -> Tensor:
    """Return numbers as one float64 row, (1, N).

    Examples:
        >>> row([1, 2]).shape
        torch.Size([1, 2])
    """
    return torch.as_tensor(values, dtype=torch.float64, device="cpu").reshape(1, -1)


def system(
    name: str,
    source: str,
    F: Map,
    start: Sequence[float] | Tensor,
    root: Sequence[float] | Tensor | None = None,
    least: float = 0.0,
) -> LiteratureProblem:
    """Return the problem F(z) = 0."""
    known = None if root is None else row(root)
    return LiteratureProblem(
        name=name, source=source, function=F, is_map=False, start=row(start), root=known, least=least
    )


def map_of(
    name: str, source: str, f: Map, start: Sequence[float] | Tensor, root: Sequence[float] | Tensor | None = None
) -> LiteratureProblem:
    """Return the problem z = f(z)."""
    known = None if root is None else row(root)
    return LiteratureProblem(name=name, source=source, function=f, is_map=True, start=row(start), root=known)
