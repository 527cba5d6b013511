"""Plain iteration with noise on the path."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.checks import number, require
from deqlm_solvers.core.norms import lengths
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, Map, register_solver
from deqlm_solvers.loop.step_solver import StepSolver

__all__ = ["Noisy"]


@register_solver("noisy")
@options
class Noisy(StepSolver):
    """Damped plain steps, and noise on the state that dies away.

    For training models whose fixed points shall attract from around the path as well. Step k adds a normal number to
    every unknown, ``noise * decay**k`` in units of the root mean square of f(z) of the row. All rows of a batch get the
    same numbers, so that none depends on its neighbours.
    State (B, N), any floating dtype. Steps can be differentiated (`deqlm.Unrolled`), with the noise held.

    An exponential moving average of the iterates that f is evaluated at is no solver of its own: it is
    ``FixedPoint(damping=1 - momentum)``.

    Args:
        noise: of the first step, >= 0.
        decay: what is left of the noise from one step to the next, in [0, 1); 0 is one noisy step.
        damping: beta in (0, 1], z <- z + beta r.
        seed: of the noise, a whole number in [0, 2**63): the same in every solve; None draws one from torch's
            generator on the CPU for each solve.

    Raises:
        ValueError: an option outside its range.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import FixedPoint, Noisy, Solve, Stop
        >>> f, z0 = (lambda z: 0.5 * z + 1), torch.zeros(1, 1)
        >>> [round(Solve(s, Stop())(f, z0).z.item(), 2) for s in (FixedPoint(), Noisy())]
        [2.0, 2.0]
    """

    noise: float = 0.1
    decay: float = 0.5
    damping: float = 1.0
    seed: int | None = 0

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "differentiable"}
    steps_evaluate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        number("noise", self.noise, "a finite number >= 0", lambda s: 0 <= s < float("inf"))
        number("decay", self.decay, "in [0, 1)", lambda d: 0 <= d < 1)
        number("damping", self.damping, "in (0, 1]", lambda d: 0 < d <= 1)
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool) and 0 <= self.seed < 2**63
        require(self.seed is None or whole, "seed", self.seed, "a whole number in [0, 2**63), or None")

    def init(self, z: Tensor) -> tuple[torch.Generator, float]:
        seed = self.seed
        if seed is None:
            seed = int(torch.randint(2**62, (), dtype=torch.int64, device=torch.device("cpu")))
        return torch.Generator(z.device).manual_seed(seed), float(self.noise)

    def step(self, f: Map, at: Evaluation, state: tuple[torch.Generator, float]) -> tuple[Tensor, tuple]:
        generator, size = state
        plain = at.fz if self.damping == 1 else at.z + self.damping * at.r
        if size == 0:
            return plain, state
        scale = size / max(1, at.z.shape[1]) ** 0.5 * lengths(at.fz)[:, None]
        drawn = torch.randn(at.z.shape[1], dtype=plain.dtype, device=plain.device, generator=generator)
        return plain + scale.to(plain.dtype) * drawn, (generator, size * self.decay)
