"""Broyden's methods with limited memory in compact form."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from deqlm_solvers.checks import require
from deqlm_solvers.linalg import solve_general
from deqlm_solvers.options import options
from deqlm_solvers.secant import Pairs, Secant, SecantState
from deqlm_solvers.solver import Evaluation, StepSolver, register_solver

__all__ = ["Broyden"]


@register_solver("broyden")
@options
class Broyden(Secant):
    """Broyden's quasi-Newton method on f(z) - z with limited memory, each row with its own Jacobian and step length.

    The inverse Jacobian is never a chain of rank-one terms: it is rebuilt each step from the kept pairs by the compact
    representation, so dropping the oldest pair is exact and leaves no term that depended on it.

    Args:
        memory: secant pairs kept, >= 1; memory of the solver is 2 memory states.
        update: "good" (secant equation for the Jacobian, least change of it) or "bad" (least change of its inverse).
        damping: the initial inverse Jacobian of r is -damping times the identity, in (0, 1].
        line_search: None, or "armijo": a row's step is halved until ||r|| falls below (1 - 1e-4 t) times its value at
            t = 0, at most 4 times; each trial is an evaluation of f and counts as one.

    Raises:
        ValueError: an option outside its range.

    Reference:
        C. G. Broyden (1965), A class of methods for solving nonlinear simultaneous equations, Math. Comp. 19, methods 1
        and 2; R. H. Byrd, J. Nocedal, R. B. Schnabel (1994), Representations of quasi-Newton matrices and their use in
        limited memory methods, Math. Program. 63, theorem 6.1 and section 7. Deviates: the safeguard of
        `Secant`, with a loose limit, because the residual of a good Broyden run grows for long before it falls.

    Example:
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

    guarantees: ClassVar[frozenset[str]] = StepSolver.guarantees | {"known_answers", "lean"}

    SHORTEST: ClassVar[float] = 1 / 16
    GROWTH: ClassVar[float] = 1e8

    def __post_init__(self) -> None:
        require(isinstance(self.memory, int) and self.memory >= 1, "memory", self.memory, "a whole number >= 1")
        require(self.update in ("good", "bad"), "update", self.update, "'good' or 'bad'")
        require(0 < self.damping <= 1, "damping", self.damping, "in (0, 1]")
        require(self.line_search in (None, "armijo"), "line_search", self.line_search, "None or 'armijo'")

    def pairs_kept(self) -> int:
        return self.memory

    def initial_damping(self) -> float:
        return self.damping

    def open_algebra(self, pairs: Pairs) -> dict[str, Tensor]:
        """Return the products of the history, (B, M, M) float64 each: ss, sy (rows s, columns y) or yy."""
        rows, memory = pairs.birth.shape
        names = ("ss", "sy") if self.update == "good" else ("yy",)
        blank = torch.zeros(rows, memory, memory, dtype=torch.float64, device=pairs.y.device)
        return {name: blank.clone() for name in names}

    def coefficients(self, algebra: dict[str, Tensor], pairs: Pairs, slot: int, r: Tensor, damping: Tensor) -> Tensor:
        system = self._good if self.update == "good" else self._bad
        return system(algebra, pairs, slot, r, damping).to(r.dtype)

    def _good(self, algebra: dict[str, Tensor], pairs: Pairs, slot: int, r: Tensor, damping: Tensor) -> Tensor:
        """Inverse of the compact form of method 1: K = -strict lower(S S^T) - beta S Y^T, q = -beta S r."""
        new = torch.stack((pairs.s[:, slot], pairs.y[:, slot], r), dim=2)
        ss_row, sy_column, rhs = torch.bmm(pairs.s, new).double().unbind(2)
        sy_row = torch.bmm(pairs.y, pairs.s[:, slot, :, None]).double()[..., 0]
        ss, sy = algebra["ss"], algebra["sy"]
        ss[:, slot] = ss_row
        ss[:, :, slot] = ss_row
        sy[:, :, slot] = sy_column
        sy[:, slot] = sy_row
        beta = damping.double()[:, None]
        newer = pairs.birth[:, :, None] > pairs.birth[:, None, :]
        system = -torch.where(newer, ss, 0.0) - beta[:, None] * sy
        return _masked_solve(system, -beta * rhs, ss.diagonal(dim1=1, dim2=2), pairs)

    def _bad(self, algebra: dict[str, Tensor], pairs: Pairs, slot: int, r: Tensor, damping: Tensor) -> Tensor:
        """Compact form of method 2: K = upper(Y Y^T) in order of age, q = Y r."""
        products = torch.bmm(pairs.y, torch.stack((pairs.y[:, slot], r), dim=2)).double()
        row, rhs = products.unbind(2)
        yy = algebra["yy"]
        yy[:, slot] = row
        yy[:, :, slot] = row
        not_newer = pairs.birth[:, :, None] <= pairs.birth[:, None, :]
        return _masked_solve(torch.where(not_newer, yy, 0.0), rhs, yy.diagonal(dim1=1, dim2=2), pairs)

    def _advance(self, at: Evaluation, norm: Tensor, grown: Tensor, state: SecantState) -> Tensor:
        if self.line_search is None:
            return super()._advance(at, norm, grown, state)
        before = replace(state)
        assert state.pairs is not None and before.direction is not None and before.length is not None
        birth = state.pairs.birth.clone()
        birth[:, state.pairs.slot] = -1
        enough = norm <= (1 - 1e-4 * before.length) * before.base_norm
        shorten = ~enough & (before.length > self.SHORTEST)
        z_next = super()._advance(at, norm, grown, state)
        assert state.direction is not None and state.length is not None
        again = shorten[:, None]
        half = 0.5 * before.length
        state.pairs.birth = torch.where(again, birth, state.pairs.birth)
        state.base_z = torch.where(again, before.base_z, state.base_z)
        state.base_r = torch.where(again, before.base_r, state.base_r)
        state.base_norm = torch.where(shorten, before.base_norm, state.base_norm)
        state.damping = torch.where(shorten, before.damping, state.damping)
        state.accepted = torch.where(shorten, before.accepted, state.accepted)
        state.direction = torch.where(again, before.direction, state.direction)
        state.length = torch.where(shorten, half, state.length)
        shortened = before.base_z + half[:, None].to(z_next.dtype) * before.direction
        return torch.where(again, shortened, z_next)

    def _propose(self, state: SecantState, step: Tensor) -> None:
        if self.line_search is not None:
            state.direction, state.length = step, torch.ones_like(state.base_norm)


def _masked_solve(system: Tensor, rhs: Tensor, squares: Tensor, pairs: Pairs) -> Tensor:
    """Solve (B, M, M) systems over the stored pairs, scaled by the root of ``squares`` (B, M) on both sides."""
    used = (pairs.birth >= 0) & (squares > 0)
    scale = torch.where(used, squares, 1.0).rsqrt()
    both = used[:, :, None] & used[:, None, :]
    scaled = torch.where(both, system * scale[:, :, None] * scale[:, None, :], 0.0)
    diagonal = scaled.diagonal(dim1=1, dim2=2)
    diagonal.copy_(torch.where(used, diagonal, 1.0))
    x = solve_general(scaled, torch.where(used, rhs * scale, 0.0))
    return x * scale
