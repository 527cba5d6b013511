"""Broyden's methods with limited memory in compact form."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from deqlm_solvers.core.checks import number, require, whole
from deqlm_solvers.core.native_rule import Impl, NativeRule, Update, check_impl
from deqlm_solvers.core.norms import row_norms
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solver import Evaluation, register_solver
from deqlm_solvers.linalg.small_systems import push_column, push_row, solve_general
from deqlm_solvers.loop.step_solver import StepSolver
from deqlm_solvers.methods.secant import Pairs, Secant, SecantState

__all__ = ["Broyden"]


@register_solver("broyden")
@options
class Broyden(Secant):
    """Broyden's quasi-Newton method on f(z) - z with limited memory, each row with its own Jacobian and step length.

    The inverse Jacobian is never a chain of rank-one terms: it is rebuilt each step from the kept pairs by the compact
    representation, so dropping the oldest pair is exact and leaves no term that depended on it. State (B, N), any
    floating dtype; small systems in float64.

    Args:
        memory: secant pairs kept, >= 1; memory of the solver is 2 memory states. More than 4 N (or eight, if that
            is more) or than ``max_iter`` are not kept.
        update: "good" (secant equation for the Jacobian, least change of it) or "bad" (least change of its inverse).
        damping: the initial inverse Jacobian of r is -damping times the identity, in (0, 1].
        line_search: None, or "armijo": a row's step is halved until ||r|| falls below (1 - 1e-4 t) times its value at
            t = 0, at most 4 times; each trial is an evaluation of f and counts as one.
        impl: "torch" (operations of torch), "cpp" (one compiled call per evaluation, on a CPU, without a graph),
            "triton" (one to five kernel launches per evaluation, on a GPU, without a graph), or "auto": "cpp" or
            "triton" where it can be, else "torch".

    Raises:
        ValueError: an option outside its range.

    Reference:
        C. G. Broyden (1965), A class of methods for solving nonlinear simultaneous equations, Math. Comp. 19, methods 1
        and 2; R. H. Byrd, J. Nocedal, R. B. Schnabel (1994), Representations of quasi-Newton matrices and their use in
        limited memory methods, Math. Program. 63, theorem 6.1 and section 7. Deviates: the safeguard of
        `Secant`, with a loose limit, because the residual of a good Broyden run grows for long before it falls.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Broyden, Solve, Stop
        >>> sol = Solve(Broyden(memory=8), Stop(rtol=1e-6))(lambda z: 1 - 2 * z, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.3333
    """

    memory: int = 20
    update: Literal["good", "bad"] = "good"
    damping: float = 1.0
    line_search: Literal["armijo"] | None = None
    impl: Impl = "auto"

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "lean"}

    SHORTEST: ClassVar[float] = 1 / 16
    GROWTH: ClassVar[float] = 1e6

    def __post_init__(self) -> None:
        whole("memory", self.memory, 1)
        require(self.update in ("good", "bad"), "update", self.update, "'good' or 'bad'")
        number("damping", self.damping, "in (0, 1]", lambda d: 0 < d <= 1)
        require(self.line_search in (None, "armijo"), "line_search", self.line_search, "None or 'armijo'")
        check_impl(self.impl)

    def native_rule(self) -> NativeRule | None:
        if type(self) is not Broyden:
            return None
        return NativeRule(
            Update.BROYDEN_GOOD if self.update == "good" else Update.BROYDEN_BAD,
            pairs=self.memory,
            damping=self.damping,
            growth=self.GROWTH,
            line_search=self.line_search is not None,
        )

    def pairs_kept(self) -> int:
        return self.memory

    def initial_damping(self) -> float:
        return self.damping

    def fitted(self, unknowns: int, max_iter: int) -> Self:
        """Keep 4 N pairs, and eight at least.

        Only N of them are independent, but N alone take nearly twice the evaluations of 4 N, and more gain nothing.
        """
        most = min(max(8, 4 * unknowns), max_iter)
        return self if self.memory <= most else self.replace(memory=most)

    def init(self, z: Tensor) -> SecantState:
        state = super().init(z)
        if self.line_search is not None:
            state.searches, state.length = True, torch.ones_like(state.first_norm)
        return state

    def fits_scale(self) -> bool:
        return self.update == "bad"

    def product_names(self) -> tuple[str, ...]:
        return ("ss", "sy") if self.update == "good" else ("yy",)

    def weights(self, products: dict[str, Tensor], pairs: Pairs, r: Tensor, damping: Tensor) -> Tensor:
        system = self._good if self.update == "good" else self._bad
        return system(products, pairs, r, damping)

    def _good(self, products: dict[str, Tensor], pairs: Pairs, r: Tensor, damping: Tensor) -> Tensor:
        """Inverse of the compact form of method 1, signs changed.

        K holds s_i . s_j where pair i is newer than j, plus beta s_i . y_j; q holds beta s_i . r.
        """
        s, y = pairs.new_s, pairs.new_y
        ss = products["ss"] = push_row(products["ss"], pairs.products(pairs.s, s))
        sy = products["sy"] = push_column(products["sy"], pairs.products(pairs.s, y))
        sy[:, 0] = pairs.products(pairs.y, s)
        beta = damping.double()
        system = ss.triu(1) + beta[..., None] * sy
        return _scaled_solve(system, beta * pairs.products(pairs.s, r), ss.diagonal(dim1=1, dim2=2), pairs)

    def _bad(self, products: dict[str, Tensor], pairs: Pairs, r: Tensor, damping: Tensor) -> Tensor:
        """Compact form of method 2: K holds y_i . y_j where pair i is not newer than j, q holds y_i . r."""
        yy = products["yy"] = push_column(products["yy"], pairs.products(pairs.y, pairs.new_y))
        return _scaled_solve(yy.tril(), pairs.products(pairs.y, r), yy.diagonal(dim1=1, dim2=2), pairs)

    def _advance(
        self, at: Evaluation, norm: Tensor, sound: Tensor, state: SecantState, held: Tensor | None = None
    ) -> Tensor:
        if self.line_search is None:
            return super()._advance(at, norm, sound, state, held)
        before = replace(state)
        assert before.direction is not None and before.length is not None
        count = (before.pairs.count + 1).masked_fill(before.damping.restarted, 0)
        enough = norm <= (1 - 1e-4 * before.length) * before.base_norm
        shorten = ~enough & (before.length > self.SHORTEST)
        z_next = super()._advance(at, norm, sound, state, shorten)
        assert state.direction is not None
        half = 0.5 * before.length
        state.base_norm = torch.where(shorten, before.base_norm, _base_norm(state))
        state.pairs.count = torch.where(shorten, count, state.pairs.count)
        state.base_z = torch.where(shorten, before.base_z, state.base_z)
        state.base_r = torch.where(shorten, before.base_r, state.base_r)
        state.direction = torch.where(shorten, before.direction, state.direction)
        state.length = torch.where(shorten, half, 1.0)
        shortened = before.base_z + half.to(z_next.dtype) * before.direction
        return torch.where(shorten, shortened, z_next)

    def final(self, state: SecantState) -> Tensor | None:
        final = super().final(state)
        if final is None or state.length is None:
            return final
        return final & ~(state.length[:, 0] > self.SHORTEST)


def _base_norm(state: SecantState) -> Tensor:
    return row_norms(state.base_r)[:, None]


def _scaled_solve(system: Tensor, rhs: Tensor, squares: Tensor, pairs: Pairs) -> Tensor:
    """Solve (B, M, M) systems over the usable pairs, scaled by the root of ``squares`` (B, M) on both sides."""
    unused = pairs.unused(squares)
    scale = squares.rsqrt().masked_fill(unused, 0.0)
    scaled = system * (scale[:, :, None] * scale[:, None])
    scaled.diagonal(dim1=1, dim2=2).add_(unused)
    return solve_general(scaled, rhs * scale) * scale
