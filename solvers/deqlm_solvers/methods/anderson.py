"""Anderson acceleration, type II."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from deqlm_solvers.core.checks import number, whole
from deqlm_solvers.core.native_rule import Impl, NativeRule, Update, check_impl
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import register_solver
from deqlm_solvers.linalg.small_systems import push_column, solve_leading
from deqlm_solvers.loop.step_solver import StepSolver
from deqlm_solvers.methods.fixed_point import FixedPoint
from deqlm_solvers.methods.secant import Pairs, Secant, SecantState

__all__ = ["Anderson"]

CHOICES = ("fixed_point", "anderson")


@register_solver("anderson")
@options
class Anderson(Secant):
    """Anderson acceleration: mixes the last points so that their mixed residual is smallest.

    The default for maps nobody has looked at: as cheap in evaluations as any Krylov method on linear maps, and it finds
    fixed points of maps that expand. Each step adds one row of inner products to the history, all of it per row.
    The window adapts: going back from the newest change of the residual, it ends at the first one that depends on the
    newer ones (squared sine below 1e-4 in float32, 1e-9 in float64), so stale points do not slow a fast row down. State
    (B, N), any floating dtype; small systems in float64.

    A row takes plain steps z <- f(z), which cost nothing, for as long as its residual falls fast, and mixes from then
    on; it goes back to plain steps where mixing gains little. `Solution.picked` says what a row ended with.

    Args:
        memory: points (z, f(z)) that are mixed, >= 1; 1 is damped Picard iteration, without safeguard. The history
            takes 2 (memory - 1) states; more points than N + 1 or ``max_iter`` are not kept.
        damping: beta in (0, 1], weight of the mixed residual in the step.
        ridge: regularisation relative to the scaled Gram matrix (unit diagonal), >= 0; None takes 1e-6 for float32 and
            1e-12 for float64 algebra.
        plain_rate: a row takes plain steps for as long as each residual is at most this factor times the one before,
            in [0, 1); 0 mixes from the start.
        impl: "torch" (operations of torch), "cpp" (one compiled call per evaluation, on a CPU, without a graph),
            "triton" (one to five kernel launches per evaluation, on a GPU, without a graph), or "auto": "cpp" or
            "triton" where it can be, else "torch".

    Raises:
        ValueError: an option outside its range.

    Reference:
        D. G. Anderson (1965); H. F. Walker, P. Ni (2011), Anderson acceleration for fixed-point iterations, SIAM J.
        Numer. Anal. 49, equation (2.3). Deviates: Gram matrix scaled to unit diagonal with a relative ridge; the
        adaptive window, after S. Pollock, L. G. Rebholz (2023), Filtering for Anderson acceleration, SIAM J. Sci.
        Comput. 45 (angle filtering); the safeguard of `Secant`.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Anderson, Solve, Stop
        >>> sol = Solve(Anderson(memory=5), Stop(rtol=1e-6))(lambda z: 1 - 2 * z, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.3333
    """

    memory: int = 12
    damping: float = 1.0
    ridge: float | None = None
    plain_rate: float = 0.45
    impl: Impl = "auto"

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "lean"}

    def __post_init__(self) -> None:
        whole("memory", self.memory, 1)
        number("damping", self.damping, "in (0, 1]", lambda d: 0 < d <= 1)
        if self.ridge is not None:
            number("ridge", self.ridge, "in [0, 1), or None", lambda r: 0 <= r < 1)
        number("plain_rate", self.plain_rate, "in [0, 1)", lambda r: 0 <= r < 1)
        check_impl(self.impl)

    def native_rule(self) -> NativeRule | None:
        if type(self) is not Anderson:
            return None
        return NativeRule(
            Update.ANDERSON,
            pairs=self.pairs_kept(),
            damping=self.damping,
            ridge=self.ridge,
            growth=self.GROWTH,
            plain_rate=self.plain_rate,
            choices=CHOICES if self.plain_rate else (),
        )

    def picked(self, state: SecantState) -> tuple[Tensor, tuple[str, ...]] | None:
        if not self.plain_rate:
            return None
        if state.phase is None:
            return torch.zeros(len(state.unit), dtype=torch.int8, device=state.unit.device), CHOICES
        return (~state.phase.move.plain[:, 0]).to(torch.int8), CHOICES

    def fitted(self, unknowns: int, max_iter: int) -> StepSolver:
        """Keep no more pairs than are independent, which is how far the window reaches; without pairs it is Picard."""
        if self.memory == 1:
            return FixedPoint(damping=self.damping, impl=self.impl)
        most = max(1, min(unknowns, max_iter))
        return self if self.pairs_kept() <= most else self.replace(memory=most + 1)

    def fits_scale(self) -> bool:
        return True

    def plain_below(self) -> float:
        return self.plain_rate

    def buffers(self, rows: int, unknowns: int, dtype: torch.dtype) -> dict[str, int]:
        return {} if self.memory == 1 else super().buffers(rows, unknowns, dtype)

    def pairs_kept(self) -> int:
        return max(1, self.memory - 1)

    def initial_damping(self) -> float:
        return self.damping

    def product_names(self) -> tuple[str, ...]:
        return ("yy",)

    def weights(self, products: dict[str, Tensor], pairs: Pairs, r: Tensor, damping: Tensor) -> Tensor:
        """Return gamma of min ||r - Y^T gamma||, by age, (B, M)."""
        gram = products["yy"] = push_column(products["yy"], pairs.products(pairs.y, pairs.new_y))
        squares = gram.diagonal(dim1=1, dim2=2)
        scale = squares.rsqrt().masked_fill(pairs.unused(squares), 0.0)
        scaled = gram * (scale[:, :, None] * scale[:, None])
        double = r.dtype == torch.float64
        ridge = self.ridge if self.ridge is not None else (1e-12 if double else 1e-6)
        scaled.diagonal(dim1=1, dim2=2).fill_(1.0 + ridge)
        rhs = pairs.products(pairs.y, r) * scale
        x = solve_leading(scaled, rhs, 1e-9 if double else 1e-4)
        products["gain"] = (x * rhs).sum(1, keepdim=True)
        return x * scale
