"""The problems of the literature as a family of the comparison, one at a time."""

from __future__ import annotations

from typing import ClassVar, Literal

from deqlm.comparison.problem import Case, Problem, register_problem
from deqlm.comparison.problems.literature import literature
from deqlm.comparison.settings import Settings
from deqlm_solvers import options
from deqlm_solvers.core.checks import require

__all__ = ["Published"]


@register_problem("literature")
@options
class Published(Problem):
    """One of the published problems that ``--suite literature`` takes, from its published start.

    Every row is the same. Where a root is zero no relative tolerance is reached; the suite has an absolute one.

    Args:
        case: its name, see ``deqlm compare --suite literature --list-problems``.
        sign: what becomes of a system F(z) = 0: "minus" makes it z = z - F(z), "plus" z = z + F(z). A problem that is
            a map has no choice.

    Raises:
        KeyError: an unknown case.
        ValueError: another sign, or "plus" for a map.

    Examples:
        >>> from deqlm.comparison import compare
        >>> result = compare("literature:case=wood", "newton", dtype="float64", repeats=1, progress=False)
        >>> result.problems[0].entry("newton").outcome
        'solved'
    """

    case: str = "boggs"
    sign: Literal["minus", "plus"] = "minus"

    telling: ClassVar[tuple[str, ...]] = ("case",)

    def __post_init__(self) -> None:
        require(self.sign in ("minus", "plus"), "sign", self.sign, "'minus' or 'plus'")
        if literature(self.case).is_map and self.sign == "plus":
            raise ValueError(f"sign='plus' is not used for {self.case}, which is a map")

    @property
    def title(self) -> str:
        return literature(self.case).source

    def build(self, settings: Settings) -> Case:
        problem = literature(self.case)
        f = problem.map("f" if problem.is_map else "z - F" if self.sign == "minus" else "z + F")
        rows = settings.batch or 1
        start = problem.start.to(settings.device).expand(rows, -1).contiguous()
        root = None if problem.root is None else problem.root.to(settings.device).expand(rows, -1)
        return Case(f, f, start.to(settings.dtype), problem.max_iter, solution=lambda: root)
