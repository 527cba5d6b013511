"""Maps that follow one another: slowly changing inputs, the steps of a training, tokens of a causal chain."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deqlm.comparison.problem import Case, Setting, label_of
from deqlm.comparison.problems.user import UserProblem, call_with, load_callable
from deqlm.functional import solve
from deqlm_solvers import Options, Registry, Stop, options
from deqlm_solvers.core.checks import number, suggest, whole

__all__ = ["SEQUENCES", "STANDARD", "Epochs", "Inputs", "Sequence", "Tokens", "UserSequence", "to_sequence"]

MAX_ITER = 300


class Sequence(Options, ABC):
    """A family of maps that are solved one after another. Subclass it and implement `members`.

    Class attributes:
        telling: options that the label always names.
        rows: B, where the setting does not say.

    Examples:
        >>> from deqlm.comparison import Setting
        >>> len(list(Inputs(length=3).members(Setting())))
        3
    """

    telling: ClassVar[tuple[str, ...]] = ()
    rows: ClassVar[int] = 16

    @abstractmethod
    def members(self, setting: Setting) -> Iterator[Case]:
        """Yield the maps in order, each with the start of a solve that knows of no other; equal settings, equal bits.

        A map may change when the next one is asked for.
        """

    @property
    def title(self) -> str:
        """First line of the class docstring."""
        return (type(self).__doc__ or "").strip().splitlines()[0].rstrip(".")

    @property
    def label(self) -> str:
        """Registry name and options, as one would type it."""
        return label_of(self, *self.telling)


SEQUENCES: Registry[Sequence] = Registry("sequence", Sequence, "deqlm.sequences")
"""The sequences of ``deqlm compare --starts`` by name."""


@SEQUENCES.register("inputs")
@options
class Inputs(Sequence):
    """Inputs that change a little from solve to solve, z = tanh(W z + u_t).

    Args:
        change: ||u_(t+1) - u_t|| / ||u_t||, in (0, 1.4]; at 1.4 one tells nothing about the next.
        length: solves, >= 2.
        unknowns: N, >= 2.
    """

    change: float = 0.02
    length: int = 12
    unknowns: int = 64

    telling: ClassVar[tuple[str, ...]] = ("change",)

    def __post_init__(self) -> None:
        number("change", self.change, "in (0, 1.4]", lambda change: 0 < change <= 1.4)
        whole("length", self.length, 2)
        whole("unknowns", self.unknowns, 2)

    def members(self, setting: Setting) -> Iterator[Case]:
        draw, rows = _normal(setting), setting.batch or self.rows
        W = _of_radius(draw(self.unknowns, self.unknowns), 0.9)
        u, v = draw(rows, self.unknowns), draw(rows, self.unknowns)
        angle = 2 * torch.asin(torch.tensor(self.change / 2, dtype=torch.float64, device="cpu"))
        for t in range(self.length):
            yield _tanh_case(setting, W, (angle * t).cos() * u + (angle * t).sin() * v)


@SEQUENCES.register("epochs")
@options
class Epochs(Sequence):
    """Epochs of a training: the same rows, and weights that a step of Adam has changed.

    Args:
        rate: learning rate, > 0.
        length: epochs, >= 2; the first is that of the initial weights.
        unknowns: N, >= 2.
    """

    rate: float = 0.003
    length: int = 12
    unknowns: int = 64

    telling: ClassVar[tuple[str, ...]] = ("rate",)

    def __post_init__(self) -> None:
        number("rate", self.rate, "> 0", lambda rate: rate > 0)
        whole("length", self.length, 2)
        whole("unknowns", self.unknowns, 2)

    def members(self, setting: Setting) -> Iterator[Case]:
        draw, rows = _normal(setting), setting.batch or self.rows
        W = nn.Parameter(_of_radius(draw(self.unknowns, self.unknowns), 0.8))
        u, target = draw(rows, self.unknowns), draw(rows, self.unknowns)
        b = nn.Parameter(torch.zeros_like(u[0]))
        optimiser = torch.optim.Adam([W, b], lr=self.rate)
        for _ in range(self.length):
            yield _tanh_case(setting, W.detach(), u + b.detach())
            with torch.enable_grad():
                sol = solve(
                    lambda z: torch.tanh(z @ W.mT + u + b),
                    torch.zeros_like(u),
                    stop=Stop(max_iter=MAX_ITER, rtol=1e-8),
                    on_failure="ignore",
                )
                optimiser.zero_grad()
                (sol.z - target).square().mean().backward()
            optimiser.step()


@SEQUENCES.register("tokens")
@options
class Tokens(Sequence):
    """Tokens of a causal chain, one solve each, z = tanh(W z + carry z_(t-1) + u_t).

    Every sixth token has an input.

    Args:
        carry: how the token before enters; above 0 the state stays, below 0 every token turns it around.
        length: tokens, >= 2.
        unknowns: N, >= 2.
    """

    carry: float = 1.0
    length: int = 12
    unknowns: int = 64

    telling: ClassVar[tuple[str, ...]] = ("carry",)

    def __post_init__(self) -> None:
        number("carry", self.carry, "a number", lambda carry: carry == carry)
        whole("length", self.length, 2)
        whole("unknowns", self.unknowns, 2)

    def members(self, setting: Setting) -> Iterator[Case]:
        draw, rows = _normal(setting), setting.batch or self.rows
        W = _of_radius(draw(self.unknowns, self.unknowns), 0.8)
        before = torch.zeros(rows, self.unknowns, dtype=torch.float64, device="cpu")
        for t in range(self.length):
            entering = self.carry * before + (draw(rows, self.unknowns) if t % 6 == 0 else 0.0)
            yield _tanh_case(setting, W, entering)
            # the chain goes on from the exact point, so that every solver sees the same maps
            z = before
            for _ in range(MAX_ITER):
                z = torch.tanh(z @ W.mT + entering)
            before = z


@options
class UserSequence(Sequence):
    """Your own sequence.

    Args:
        make: called like the factory of a `UserProblem`; it returns or yields pairs (f, z0).
        shown: name in tables; None takes the factory's own.

    Examples:
        >>> from deqlm.comparison import compare_starts
        >>> def make(batch=2):
        ...     for t in range(3):
        ...         yield lambda z, t=t: 0.5 * torch.cos(z + 0.01 * t), torch.zeros(batch, 3)
        >>> entry = compare_starts(UserSequence(make=make), "fixed_point", repeats=1).problems[0].entries[0]
        >>> entry.steps_previous < entry.steps_zero
        True
    """

    make: Callable[..., Any]
    shown: str | None = None

    @property
    def title(self) -> str:
        return (self.make.__doc__ or "your own sequence").strip().splitlines()[0].rstrip(".")

    @property
    def label(self) -> str:
        return self.shown or getattr(self.make, "__name__", "sequence")

    def members(self, setting: Setting) -> Iterator[Case]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            for pair in call_with(self.make, setting):
                yield UserProblem(make=lambda pair=pair: pair).build(setting)


STANDARD: tuple[Sequence, ...] = (
    Inputs(change=0.02),
    Inputs(change=0.2),
    Inputs(change=1.4),
    Epochs(),
    Tokens(carry=1.0),
    Tokens(carry=-1.0),
)
"""What ``--starts`` compares on by default."""


def to_sequence(given: Any) -> Sequence:
    """Return a sequence from an object, a spec, or a factory of pairs (f, z0).

    Raises:
        KeyError: an unknown name.
        TypeError, ValueError: a bad option, or anything else.
    """
    from deqlm.comparison.spec import make_from

    if isinstance(given, Sequence):
        return given
    if callable(given):
        return UserSequence(make=given)
    if not isinstance(given, str):
        raise TypeError(f"a sequence must be a name, a Sequence or a factory of pairs (f, z0), got {given!r}")
    name, colon, rest = given.partition(":")
    if name in SEQUENCES or not colon or "=" in rest.partition(":")[0]:
        if name not in SEQUENCES:
            raise KeyError(f"unknown sequence {name!r}: {suggest(name, SEQUENCES)}, or your own module:callable")
        return make_from(SEQUENCES, given)
    return UserSequence(make=load_callable(given), shown=given)


def _normal(setting: Setting) -> Callable[..., Tensor]:
    generator = setting.generator()
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def _of_radius(W: Tensor, rho: float) -> Tensor:
    return W * (rho / torch.linalg.eigvals(W).abs().max())


def _tanh_case(setting: Setting, W: Tensor, b: Tensor) -> Case:
    """Return tanh(W z + b) in the dtype of the setting, with fixed copies of what was given in float64."""
    low = [copy.deepcopy(t).to(setting.dtype).to(setting.device) for t in (W, b)]
    high = [t.double() for t in low]
    return Case(
        f=lambda z: torch.tanh(torch.addmm(low[1], z, low[0].mT)),
        exact=lambda z: torch.tanh(torch.addmm(high[1], z, high[0].mT)),
        z0=torch.zeros_like(low[1]),
        max_iter=MAX_ITER,
    )
