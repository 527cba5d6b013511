"""What a problem of the comparison is: a map with a start, a tolerance, and where it exists the known answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from deqlm_solvers import Map, Options, Registry
from deqlm_solvers.core.checks import require, whole

__all__ = ["PROBLEMS", "TOLERANCES", "Case", "Problem", "Setting", "register_problem"]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Relative tolerance asked for, per dtype; a few units in the last place for the half precisions."""


@dataclass(frozen=True)
class Setting:
    """What a problem is built for.

    Attributes:
        dtype: dtype of the state.
        device: device of the state.
        batch: rows B, >= 1, or None for the problem's own number.
        seed: seed of everything random in the problem, in [0, 2**63).

    Raises:
        ValueError: a dtype without a tolerance, or a batch or seed outside its range.

    Examples:
        >>> from deqlm.comparison import PROBLEMS, Setting
        >>> PROBLEMS["rotation"]().build(Setting(batch=3)).z0.shape
        torch.Size([3, 64])
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    batch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        known = ", ".join(str(d).removeprefix("torch.") for d in TOLERANCES)
        require(self.dtype in TOLERANCES, "dtype", self.dtype, f"one of {known}")
        if self.batch is not None:
            whole("batch", self.batch, 1)
        seeded = isinstance(self.seed, int) and not isinstance(self.seed, bool) and 0 <= self.seed < 2**63
        require(seeded, "seed", self.seed, "a whole number in [0, 2**63)")

    @property
    def tol(self) -> float:
        """Relative tolerance for this dtype."""
        return TOLERANCES[self.dtype]

    @property
    def accepted(self) -> float:
        """Largest true relative residual of a solved row: 1.05 tol; in half precision plus the rounding of f(z)."""
        half = self.dtype in (torch.float16, torch.bfloat16)
        return 1.05 * self.tol + (torch.finfo(self.dtype).eps / 2 if half else 0.0)

    def generator(self) -> torch.Generator:
        """Return a fresh generator on the CPU, seeded with ``seed``."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, eq=False)
class Case:
    """A problem that was built: rows of z = f(z).

    Attributes:
        f: the map on rows, (B, N) -> (B, N), in the dtype of the setting.
        exact: the same map in float64, with the parameters of ``f`` (rounded to the setting's dtype, then widened).
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


class Problem(Options, ABC):
    """A family of problems. Subclass it, decorate with `deqlm.options` (and `register_problem`), implement `build`.

    Options of the family are its fields. An object can be given to `compare` as it is; registered, the family has a
    name that can be typed.

    Class attributes:
        max_iter: evaluations allowed in float32 and lower.
        max_iter_double: evaluations allowed in float64, where the tolerance is 1e-10.
        telling: options that the label always names.

    Examples:
        >>> import deqlm
        >>> from deqlm.comparison import Case, Problem, compare
        >>> @deqlm.options
        ... class Kepler(Problem):
        ...     '''Kepler's equation E = M + e sin E for mean anomalies M.'''
        ...
        ...     e: float = 0.6
        ...
        ...     def build(self, setting):
        ...         M = torch.linspace(0.1, 3.0, setting.batch or 8, dtype=torch.float64)[:, None]
        ...         M = M.to(setting.device, setting.dtype)
        ...         exact = lambda z: M.double() + self.e * z.sin()
        ...         return Case(lambda z: M + self.e * z.sin(), exact, z0=M, max_iter=self.budget(setting))
        >>> result = compare(Kepler(e=0.3), "fixed_point,anderson", repeats=1, progress=False)
        >>> [entry.outcome for entry in result.problems[0].entries]
        ['solved', 'solved']
    """

    max_iter: ClassVar[int] = 200
    max_iter_double: ClassVar[int] = 300
    telling: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, setting: Setting) -> Case:
        """Return the problem for a dtype, device, batch and seed; equal settings give equal bits.

        What it raises becomes the problem's line in the table; the other problems run.
        """

    def budget(self, setting: Setting) -> int:
        """Return the evaluations a solver may make."""
        return self.max_iter_double if setting.dtype == torch.float64 else self.max_iter

    @property
    def title(self) -> str:
        """What the problem tests, one line: the first line of the class docstring."""
        return (type(self).__doc__ or "").strip().splitlines()[0].rstrip(".")

    @property
    def label(self) -> str:
        """Registry name, telling options and those that differ from their defaults, as one would type it."""
        return label_of(self, *self.telling)


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

    def build(self, setting: Setting) -> Case:
        generator = setting.generator()
        rows = setting.batch or self.rows
        known: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        drawn = self.tensors(lambda *shape: torch.randn(*shape, **known), rows)
        low = {name: t.to(setting.dtype).to(setting.device) for name, t in drawn.items()}
        high = {name: t.double() for name, t in low.items()}
        return Case(
            f=lambda z: self.apply(z, low),
            exact=lambda z: self.apply(z, high),
            z0=self.start(low, rows),
            max_iter=self.budget(setting),
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
        ...     def build(self, setting):
        ...         z0 = torch.zeros(setting.batch or 2, self.unknowns, dtype=setting.dtype, device=setting.device)
        ...         return Case(torch.cos, torch.cos, z0, max_iter=self.budget(setting))
        >>> compare("cosine:unknowns=3", "anderson", repeats=1, progress=False).problems[0].unknowns
        3
    """
    return PROBLEMS.register(name, *aliases, override=override)
