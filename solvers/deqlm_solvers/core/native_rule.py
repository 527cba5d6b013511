"""What a solver tells the compiled step about its update rule."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple

from deqlm_solvers.core.checks import require

__all__ = ["Impl", "NativeRule", "Update", "check_impl"]

Impl = Literal["auto", "torch", "cpp", "triton"]


class Update(IntEnum):
    """Update rules that step.cpp knows."""

    PICARD = 0
    ANDERSON = 1
    BROYDEN_GOOD = 2
    BROYDEN_BAD = 3


class NativeRule(NamedTuple):
    """Parameters of the compiled step; names and meaning as the options of the solvers.

    Attributes:
        rule: the update rule.
        pairs: secant pairs kept per row.
        growth: limit of the residual, in units of the first one, that falls as (n+1)^-1.1.
        choices: names for `Solution.choices`, plain steps first; empty where there is one rule only.
    """

    rule: Update
    pairs: int = 0
    damping: float = 1.0
    first_damping: float = 1.0
    ridge: float | None = None
    growth: float = 0.0
    plain_rate: float = 0.0
    line_search: bool = False
    choices: tuple[str, ...] = ()


def check_impl(value: str) -> None:
    """Raise ``ValueError`` unless ``value`` is a realisation of the step."""
    require(value in ("auto", "torch", "cpp", "triton"), "impl", value, "'auto', 'torch', 'cpp' or 'triton'")
