"""The linear system behind the implicit gradient: products with J and J^T on the graph of one evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqlm.gradients.along import Along, one_by_one
from deqlm.gradients.linear_solve import LinearSystem, solve_cotangent
from deqlm.gradients.pull_back import pull_back, pull_back_many, push_through
from deqlm.wrap.held import Held
from deqlm_solvers import Adjoint, Anderson, Cost, Layout, Map, Solution, Solve, Status
from deqlm_solvers.core.kinds import refuse_transforms
from deqlm_solvers.loop.criterion import warn_below_floor
from deqlm_solvers.methods.deer.grid import Grid

__all__ = ["System"]

BAD = int(Status.DIVERGED)


@dataclass(eq=False)
class System:
    """(I - J^T) w = g, and (I - J) v = g, at one solved point.

    Attributes:
        how: solver and stop.
        rescue: whether rows that fail are solved again by GMRES, and maps that no scan can solve by Anderson's method.
        failed: what rows get that fail all the same; see `Implicit`.
        layout: leaves, batch dimensions and token mask of the rows.
        held: unknowns that are constants of the map, or None.
        narrow: whether f computes in float16.
        fz: f at the point, (B, N), with its graph.
        source: the point, where that graph starts.
        adjoint: report to fill in.
        grid: how rows are read along a sequence, for a solve by a scan; None for other solves.
        copies: right-hand sides for each row of the graph.
        product: w -> J^T w on rows, by what is no graph of autograd; None differentiates ``fz``.
    """

    how: Solve
    rescue: bool
    failed: str
    layout: Layout
    held: Held | None
    narrow: bool
    fz: Tensor
    source: Tensor
    adjoint: Adjoint
    grid: Grid | None = None
    copies: int = 1
    product: Map | None = None

    def invert(self, g: Tensor, *, plain: bool = False, correction: bool = False) -> Tensor:
        """Solve for ``g`` (B, N); rows that fail badly get zero, rows whose g is not finite get NaN.

        Args:
            g: right-hand side.
            plain: the products are with J.
            correction: this solve continues another one, whose outcome is the one to report.
        """
        refuse_transforms(g)
        warn_below_floor(self.how.stop, g.dtype)
        rhs = g if self.held is None else torch.where(self.held.masked, 0.0, g)
        lost = None if g.device.type == "cpu" and bool(rhs.isfinite().all()) else ~rhs.isfinite().all(1)
        product = self._plain() if plain else self.product or self._transposed
        how, along = self._along(product, rhs, plain=plain)
        system = LinearSystem(
            product=product,
            g=rhs if lost is None else torch.where(lost[:, None], 0.0, rhs),
            layout=self.layout,
            narrow=self.narrow or g.dtype == torch.float16,
            along=along,
        )
        sol = solve_cotangent(how, system, rescue=self.rescue)
        return self._answer(g, sol, lost, plain=plain, correction=correction)

    def _along(self, product: Map, like: Tensor, *, plain: bool) -> tuple[Solve, Along | None]:
        """Return the solve, and the products as a map along the sequence where it is a scan.

        Raises:
            ValueError: a scan was asked for by name, and a token sees more than itself and the one before.
        """
        if self.grid is None:
            return self.how, None
        if plain or not self.fz.requires_grad:
            many = one_by_one(product, like)
        else:
            many = lambda v: pull_back_many(self.fz, self.source, v).repeat(1, self.copies, 1)  # noqa: E731
        along = Along(many, self.grid, backwards=not plain, counts=self.layout.token_mask, like=like)
        if not along.reach.further:
            return self.how, along
        if not self.rescue:
            raise ValueError(
                "a scan solves for the gradient of maps in which token t sees no others than itself and token t - 1; "
                f"{along.seen()}; use Implicit(), which solves by iteration"
            )
        return Solve(Anderson(), self.how.stop), None

    def _answer(self, g: Tensor, sol: Solution, lost: Tensor | None, *, plain: bool, correction: bool) -> Tensor:
        w = sol.z
        if sol.worst() <= int(Status.BUDGET):
            pass  # there is none to mend
        elif self.failed != "keep":
            w = torch.where(sol.failed[:, None], g if self.failed == "one_step" else 0.0, w)
        elif self.adjoint.failed_grad != "keep":
            w = torch.where(sol.status[:, None] >= BAD, 0.0, w)
        if lost is not None:
            sol = sol.replace(
                status=sol.status.masked_fill(lost, int(Status.NONFINITE)),
                residual=sol.residual.masked_fill(lost, torch.inf),
            )
        products = sol.cost.evaluations + sol.cost.jvps
        cost = Cost(jvps=products) if plain else Cost(vjps=products)
        self.adjoint.record(sol, cost, report=not correction)
        w = w if lost is None else w.masked_fill(lost[:, None], torch.nan)
        return w if self.held is None else torch.where(self.held.masked, g, w)

    def times(self, copies: int) -> System:
        """Return the system of ``copies`` right-hand sides for the same rows, one after another."""
        if copies == 1:
            return self
        rows = torch.arange(self.fz.shape[0], device=self.fz.device).repeat(copies)
        held = None if self.held is None else self.held.select(rows)
        return replace(self, layout=self.layout.select(rows), held=held, copies=copies)

    def _transposed(self, w: Tensor) -> Tensor:
        """Return J^T w, (B, N)."""

        def product(w: Tensor) -> Tensor:
            jtw = pull_back(self.fz, self.source, w) if self.fz.requires_grad else None
            return torch.zeros_like(w) if jtw is None else jtw

        return self._each(product, w)

    def _plain(self) -> Map:
        """Return v -> J v."""
        if not self.fz.requires_grad:
            return torch.zeros_like
        product = push_through(self.fz, self.source)
        return lambda v: self._each(product, v)

    def _each(self, product: Map, w: Tensor) -> Tensor:
        """Return what ``product``, on rows of the graph, makes of every copy."""
        if self.copies == 1:
            return product(w)
        parts = w.reshape(self.copies, *self.fz.shape)
        try:
            made = torch.vmap(product)(parts)
        except RuntimeError:  # an operation whose backward cannot be vectorised
            made = torch.stack([product(part) for part in parts])
        return made.reshape(w.shape)
