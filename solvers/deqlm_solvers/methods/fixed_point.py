"""Damped Picard iteration."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deqlm_solvers.core.checks import number
from deqlm_solvers.core.native_rule import Impl, NativeRule, Update, check_impl
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, Map, register_solver
from deqlm_solvers.loop.step_solver import StepSolver

__all__ = ["FixedPoint"]


@register_solver("fixed_point")
@options
class FixedPoint(StepSolver):
    """Picard iteration z <- z + damping * (f(z) - z): the cheapest step, enough when f contracts.

    The tested residual is that of the map, never of the damped step. State (B, N), any floating dtype.

    Args:
        damping: beta in (0, 1]; 1 takes the full step. Less than 1 settles oscillations.
        first_damping: damping of the first step, or None for ``damping``; 1.0 with ``damping=0.8`` and `Unrolled` is
            the warm-up of M. Schoene et al. (2025), Implicit language models are RNNs, ICML.
        decay: the damping of step k = 0, 1, ... is ``damping`` (1 + k)^-decay, in [0, 1]: the steps become shorter and
            their sum still has no bound, so that maps which keep jumping (kinks, noise of their own) settle. 0 keeps
            it.
        impl: "torch" (operations of torch), "cpp" (one compiled call per evaluation, on a CPU, without a graph),
            "triton" (one to five kernel launches per evaluation, on a GPU, without a graph), or "auto": "cpp" or
            "triton" where it can be, else "torch".

    Raises:
        ValueError: an option outside its range.

    Reference:
        E. Picard (1890); damping: M. A. Krasnoselskii (1955), Two remarks on the method of successive approximations;
        decaying: W. R. Mann (1953), Mean value methods in iteration, Proc. Amer. Math. Soc. 4.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import FixedPoint, Solve, Stop
        >>> sol = Solve(FixedPoint(), Stop(rtol=1e-5))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 3)
        0.739
    """

    damping: float = 1.0
    first_damping: float | None = None
    decay: float = 0.0
    impl: Impl = "auto"

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "lean", "differentiable"}
    steps_evaluate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        number("damping", self.damping, "in (0, 1]", lambda d: 0 < d <= 1)
        if self.first_damping is not None:
            number("first_damping", self.first_damping, "in (0, 1], or None", lambda d: 0 < d <= 1)
        number("decay", self.decay, "in [0, 1]", lambda d: 0 <= d <= 1)
        check_impl(self.impl)

    def native_rule(self) -> NativeRule | None:
        if type(self) is not FixedPoint or self.decay:
            return None
        first = self.damping if self.first_damping is None else self.first_damping
        return NativeRule(Update.PICARD, damping=self.damping, first_damping=first)

    def init(self, z: Tensor) -> int:
        """Return the number of the first step."""
        return 0

    def renew(self, z: Tensor, state: int) -> int:
        return max(1, state)

    def step(self, f: Map, at: Evaluation, state: int) -> tuple[Tensor, int]:
        damping = self.damping if state or self.first_damping is None else self.first_damping
        if self.decay:
            damping *= (1 + state) ** -self.decay
        # f(z) itself for damping 1
        return at.fz if damping == 1 else at.z + damping * at.r, state + 1
