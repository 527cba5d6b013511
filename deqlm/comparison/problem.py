"""What a problem of the comparison is: a map with a start, a tolerance, and where it exists the known answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from deqlm.comparison.settings import Settings
from deqlm_solvers import Map, Options, Registry

__all__ = ["PROBLEMS", "Case", "Family", "Problem", "TensorProblem", "label_of", "register_problem"]


@dataclass(frozen=True, eq=False)
class Case:
    """A problem that was built: rows of z = f(z).

    Attributes:
        f: the map on rows, (B, N) -> (B, N), in the dtype of the settings.
        exact: the same map in float64, with the parameters of ``f`` (rounded to their dtype, then widened).
        z0: start, (B, N).
        max_iter: evaluations a solver may make.
        solution: returns the known answer in float64, (B, N), or None where it is not unique or not known.
        parameters: leaf tensors that ``f`` captures, for gradients; may be empty.
        exact_parameters: the same in ``exact``.
        tokens: positions of a row, for the cost in tokens; 0 where the state has none.
        note: what the reader of a table must know, for example that ``exact`` is not in float64; a line each.

    Examples:
        >>> from deqlm.comparison import Case
        >>> case = Case(f=torch.cos, exact=torch.cos, z0=torch.zeros(2, 3), max_iter=50)
        >>> case.f(case.z0).shape
        torch.Size([2, 3])
    """

    f: Map
    exact: Map
    z0: Tensor
    max_iter: int
    solution: Callable[[], Tensor | None] = lambda: None
    parameters: tuple[Tensor, ...] = ()
    exact_parameters: tuple[Tensor, ...] = ()
    tokens: int = 0
    note: str = ""


class Family(Options, ABC):
    """What is compared on, with options as its fields: it has a label that can be typed, and says what it tests.

    Class attributes:
        telling: options that the label always names.
    """

    telling: ClassVar[tuple[str, ...]] = ()

    @property
    def title(self) -> str:
        """What it tests, one line: the first line of the class docstring."""
        return (type(self).__doc__ or "").strip().splitlines()[0].rstrip(".")

    @property
    def label(self) -> str:
        """Registry name, telling options and those that differ from their defaults, as one would type it."""
        return label_of(self, *self.telling)


class Problem(Family):
    """A family of problems. Subclass it, decorate with `deqlm.options` (and `register_problem`), implement `build`.

    Options of the family are its fields. An object can be given to `compare` as it is; registered, the family has a
    name that can be typed.

    Class attributes:
        max_iter: evaluations allowed in float32 and lower.
        max_iter_double: evaluations allowed in float64, where the tolerance is 1e-10.

    Examples:
        >>> import deqlm
        >>> from deqlm.comparison import Case, Problem, compare
        >>> @deqlm.options
        ... class Kepler(Problem):
        ...     '''Kepler's equation E = M + e sin E for mean anomalies M.'''
        ...
        ...     e: float = 0.6
        ...
        ...     def build(self, settings):
        ...         M = torch.linspace(0.1, 3.0, settings.batch or 8, dtype=torch.float64)[:, None]
        ...         M = M.to(settings.device, settings.dtype)
        ...         exact = lambda z: M.double() + self.e * z.sin()
        ...         return Case(lambda z: M + self.e * z.sin(), exact, z0=M, max_iter=self.budget(settings))
        >>> result = compare(Kepler(e=0.3), "fixed_point,anderson", repeats=1, progress=False)
        >>> [entry.outcome for entry in result.problems[0].entries]
        ['solved', 'solved']
    """

    max_iter: ClassVar[int] = 200
    max_iter_double: ClassVar[int] = 300

    @abstractmethod
    def build(self, settings: Settings) -> Case:
        """Return the problem for a dtype, device, batch and seed; equal settings give equal bits.

        What it raises becomes the problem's line in the table; the other problems run.
        """

    def budget(self, settings: Settings) -> int:
        """Return the evaluations a solver may make."""
        return self.max_iter_double if settings.dtype == torch.float64 else self.max_iter


class TensorProblem(Problem):
    """A problem given by tensors and a pure function of z and them; solves the two-dtype bookkeeping once."""

    rows: ClassVar[int] = 32

    @abstractmethod
    def tensors(self, draw: Callable[..., Tensor], rows: int) -> dict[str, Tensor]:
        """Return the parameters in float64; ``draw(*shape)`` gives standard normal numbers."""

    @abstractmethod
    def apply(self, z: Tensor, p: dict[str, Tensor]) -> Tensor:
        """Return f(z), (B, N), for parameters ``p`` of the dtype of z."""

    @abstractmethod
    def start(self, p: dict[str, Tensor], rows: int) -> Tensor:
        """Return z0, (B, N)."""

    def tokens(self) -> int:
        """Return `Case.tokens`."""
        return 0

    def answer(self, p: dict[str, Tensor]) -> Tensor | None:
        """Return the fixed point for float64 parameters, (B, N), or None."""
        return None

    def build(self, settings: Settings) -> Case:
        generator = settings.generator()
        rows = settings.batch or self.rows
        known: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        drawn = self.tensors(lambda *shape: torch.randn(*shape, **known), rows)
        low = {name: t.to(settings.dtype).to(settings.device) for name, t in drawn.items()}
        high = {name: t.double() for name, t in low.items()}
        return Case(
            f=lambda z: self.apply(z, low),
            exact=lambda z: self.apply(z, high),
            z0=self.start(low, rows),
            max_iter=self.budget(settings),
            solution=lambda: self.answer(high),
            parameters=tuple(low.values()),
            exact_parameters=tuple(high.values()),
            tokens=self.tokens(),
        )


def label_of(options: Options, *always: str) -> str:
    """Return ``name:key=value,...`` with the options that differ from their defaults, and those named in ``always``.

    Examples:
        >>> from deqlm_solvers import Anderson
        >>> label_of(Anderson(memory=5))
        'anderson:memory=5'
    """
    defaults: Any = type(options).__dataclass_fields__  # type: ignore[attr-defined]
    values = {key: getattr(options, key) for key in defaults}
    tail = ",".join(f"{k}={v}" for k, v in values.items() if k in always or v != defaults[k].default)
    return f"{options.name}:{tail}" if tail else options.name


PROBLEMS: Registry[Problem] = Registry("problem", Problem, "deqlm.problems")
"""Every registered problem family: iterate for names, index for the class; plugins use the group ``deqlm.problems``."""

P = TypeVar("P", bound=Problem)


def register_problem(name: str, *aliases: str, override: bool = False) -> Callable[[type[P]], type[P]]:
    """Return a decorator that registers a family of problems, so that its name and options can be typed.

    Args:
        name: lower-case words joined by ``_``.
        aliases: other names that lead to the same family; not listed.
        override: allow the name to be taken already.

    Raises:
        ValueError: a malformed name, or one that is taken.
        TypeError: the class does not extend `Problem`, or is not decorated with `deqlm.options`.

    Examples:
        >>> import deqlm
        >>> from deqlm.comparison import Case, Problem, compare, register_problem
        >>> @register_problem("cosine")
        ... @deqlm.options
        ... class Cosine(Problem):
        ...     '''The cosine of every unknown.'''
        ...
        ...     unknowns: int = 4
        ...
        ...     def build(self, settings):
        ...         z0 = torch.zeros(settings.batch or 2, self.unknowns, dtype=settings.dtype, device=settings.device)
        ...         return Case(torch.cos, torch.cos, z0, max_iter=self.budget(settings))
        >>> compare("cosine:unknowns=3", "anderson", repeats=1, progress=False).problems[0].unknowns
        3
    """
    return PROBLEMS.register(name, *aliases, override=override)
