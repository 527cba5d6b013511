"""Maps that follow one another: slowly changing inputs, the steps of a training, tokens of a causal chain."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from deqlm.comparison.problem import Case, Family
from deqlm.comparison.problems.factory import FromFactory
from deqlm.comparison.problems.user import UserProblem
from deqlm.comparison.settings import Settings
from deqlm.functional import solve
from deqlm_solvers import Registry, Stop, options
from deqlm_solvers.core.checks import number, whole

__all__ = ["SEQUENCES", "STANDARD", "Epochs", "Inputs", "Sequence", "Tokens", "UserSequence"]

MAX_ITER = 300


class Sequence(Family):
    """A family of maps that are solved one after another. Subclass it and implement `members`.

    Class attributes:
        rows: B, where the settings do not say.

    Examples:
        >>> from deqlm.comparison import Settings
        >>> len(list(Inputs(length=3).members(Settings())))
        3
    """

    rows: ClassVar[int] = 16

    @abstractmethod
    def members(self, settings: Settings) -> Iterator[Case]:
        """Yield the maps in order, each with the start of a solve that knows of no other; equal settings, equal bits.

        A map may change when the next one is asked for.
        """


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

    def members(self, settings: Settings) -> Iterator[Case]:
        draw, rows = _normal(settings), settings.batch or self.rows
        W = _of_radius(draw(self.unknowns, self.unknowns), 0.9)
        u, v = draw(rows, self.unknowns), draw(rows, self.unknowns)
        angle = 2 * torch.asin(torch.tensor(self.change / 2, dtype=torch.float64, device="cpu"))
        for t in range(self.length):
            yield _tanh_case(settings, W, (angle * t).cos() * u + (angle * t).sin() * v)


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

    def members(self, settings: Settings) -> Iterator[Case]:
        draw, rows = _normal(settings), settings.batch or self.rows
        W = nn.Parameter(_of_radius(draw(self.unknowns, self.unknowns), 0.8))
        u, target = draw(rows, self.unknowns), draw(rows, self.unknowns)
        b = nn.Parameter(torch.zeros_like(u[0]))
        optimiser = torch.optim.Adam([W, b], lr=self.rate)
        for _ in range(self.length):
            yield _tanh_case(settings, W.detach(), u + b.detach())
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

    def members(self, settings: Settings) -> Iterator[Case]:
        draw, rows = _normal(settings), settings.batch or self.rows
        W = _of_radius(draw(self.unknowns, self.unknowns), 0.8)
        before = torch.zeros(rows, self.unknowns, dtype=torch.float64, device="cpu")
        for t in range(self.length):
            entering = self.carry * before + (draw(rows, self.unknowns) if t % 6 == 0 else 0.0)
            yield _tanh_case(settings, W, entering)
            # the chain goes on from the exact point, so that every solver sees the same maps
            z = before
            for _ in range(MAX_ITER):
                z = torch.tanh(z @ W.mT + entering)
            before = z


@options
class UserSequence(FromFactory, Sequence):
    """Your own sequence.

    Args:
        make: called like the factory of a `UserProblem`; it returns or yields pairs (f, z0).
        shown: name in tables; None takes the factory's own.
        options: further keywords for ``make``.

    Examples:
        >>> from deqlm.comparison import compare_starts
        >>> def make(batch=2):
        ...     for t in range(3):
        ...         yield lambda z, t=t: 0.5 * torch.cos(z + 0.01 * t), torch.zeros(batch, 3)
        >>> entry = compare_starts(UserSequence(make=make), "fixed_point", repeats=1).problems[0].entries[0]
        >>> entry.steps_previous < entry.steps_zero
        True
    """

    own: ClassVar[str] = "sequence"

    def members(self, settings: Settings) -> Iterator[Case]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            for pair in self.made(settings):
                yield UserProblem(make=lambda pair=pair: pair).build(settings)


STANDARD: tuple[Sequence, ...] = (
    Inputs(change=0.02),
    Inputs(change=0.2),
    Inputs(change=1.4),
    Epochs(),
    Tokens(carry=1.0),
    Tokens(carry=-1.0),
)
"""What ``--starts`` compares on by default."""


def _normal(settings: Settings) -> Callable[..., Tensor]:
    generator = settings.generator()
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def _of_radius(W: Tensor, rho: float) -> Tensor:
    return W * (rho / torch.linalg.eigvals(W).abs().max())


def _tanh_case(settings: Settings, W: Tensor, b: Tensor) -> Case:
    """Return tanh(W z + b) in the dtype of the settings, with fixed copies of what was given in float64."""
    low = [copy.deepcopy(t).to(settings.dtype).to(settings.device) for t in (W, b)]
    high = [t.double() for t in low]
    return Case(
        f=lambda z: torch.tanh(torch.addmm(low[1], z, low[0].mT)),
        exact=lambda z: torch.tanh(torch.addmm(high[1], z, high[0].mT)),
        z0=torch.zeros_like(low[1]),
        max_iter=MAX_ITER,
    )
